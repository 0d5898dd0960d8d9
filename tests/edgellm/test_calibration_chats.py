"""Calibration on conversations: what the model's own template makes of them, and not the JSON that they are stored as."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import transformers

import edgellm
from edgellm.errors import UsageError
from tests import tiny_folder

TALKS = [
    [
        {"role": "user", "content": f"How tall is tower {number}?"},
        {"role": "assistant", "content": f"{number} metres.\u2028Or less."},
    ]
    for number in range(12)
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    lines = [json.dumps({"messages": talk}, ensure_ascii=False) for talk in TALKS]
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    return file


@pytest.mark.parametrize(
    "options", [{"method": "imatrix"}, {"method": "gptq", "target": "both"}, {"quant": "int8", "kv": "int8"}]
)
def test_it_runs_on_what_the_template_writes(tiny_source: Path, chats: Path, tmp_path: Path, options: dict[str, str]) -> None:
    """The digest in the recipe is that of the ids which transformers makes of these conversations."""
    from edgellm.converters import preparation

    bundle = edgellm.convert(tiny_source, tmp_path / "out", calibration=chats, **options)  # type: ignore[arg-type]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_source)
    rendered = "".join(str(tokenizer.apply_chat_template(talk, tokenize=False)) for talk in TALKS)
    count = preparation.HESSIAN_TOKENS if options.get("method") == "gptq" else preparation.DIAGONAL_TOKENS
    ids = tokenizer(rendered)["input_ids"][:count]
    assert len(ids) == count
    assert bundle.recipe.calibration == hashlib.sha256(np.array(ids, "<i8").tobytes()).hexdigest()


def test_a_model_without_a_chat_template_says_so(chats: Path, tmp_path: Path) -> None:
    source = tiny_folder.write(tmp_path / "source", template=None)
    with pytest.raises(UsageError) as caught:
        edgellm.convert(source, tmp_path / "out", calibration=chats)
    said = "the model has no chat template to write conversations with; give --calibration plain text"
    assert str(caught.value) == f"{chats}: {said}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["chats.jsonl", "source"]


def test_a_line_that_is_no_conversation_is_said_before_the_source_is_opened(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n{"prompt": "a"}\n')
    with pytest.raises(UsageError, match=r"chats.jsonl, line 2: not a conversation: a line is"):
        edgellm.convert("no-such-model", tmp_path / "out", calibration=tmp_path / "chats.jsonl")


@pytest.mark.parametrize("options", [{"method": "gptq", "target": "both"}, {}])
def test_a_text_of_two_letters_is_enough_to_run_on(tiny_source: Path, tmp_path: Path, options: dict[str, str]) -> None:
    """It says next to nothing, and what is made of it still runs."""
    (tmp_path / "own.txt").write_text("ab")
    bundle = edgellm.convert(tiny_source, tmp_path / "out", calibration=tmp_path / "own.txt", **options)  # type: ignore[arg-type]
    with edgellm.load(bundle.path) as llm:
        assert len(llm.generate("Hi", max_tokens=4, temperature=0).ids) == 4
