"""The chain is the way that LLM.chat goes, and its parts are all of its time."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgellm
from edgellm.benchmarks.chain import SAMPLING, Chain
from edgellm.benchmarks.result import Case
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
from edgellm.tokenizer import Tokenizer
from tests import tiny_folder

MESSAGE = 12  # tokens
TEXT = "The harbour lies still in the morning, and the boats go out one behind the other."


@pytest.fixture(scope="module")
def tiny_chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    return edgellm.convert(tiny_folder.write(folder / "source", context=256), folder / "bundle", quant="fp32").path


@pytest.fixture(scope="module")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    source = tiny_folder.write(folder / "source", context=64, template=None)
    return edgellm.convert(source, folder / "bundle", quant="fp32").path


def test_it_goes_the_way_of_a_chat(tiny_chat_bundle: Path) -> None:
    """The same tokens as the face finds with the same sampling; a stop token aside, which a chain goes on after."""
    bundle = Bundle.open(tiny_chat_bundle)
    ids = Tokenizer.open(bundle).encode(TEXT, special=False)
    runtime = open_runtime(bundle, threads=1)
    timed = Chain(bundle, runtime.session(), ids).run(Case("chain", MESSAGE, steps=10))
    runtime.close()
    message = Tokenizer.open(bundle).decode(ids[:MESSAGE])
    with edgellm.load(tiny_chat_bundle, threads=1) as llm:
        out = llm.chat(
            [{"role": "user", "content": message}],
            max_tokens=10,
            temperature=SAMPLING.temperature,
            top_k=SAMPLING.top_k,
            top_p=SAMPLING.top_p,
            seed=SAMPLING.seed,
        )
    assert len(out.ids) > 0
    assert timed.tokens[: len(out.ids)] == out.ids
    assert len(timed.tokens) == len(timed.steps) == 10


def test_every_second_belongs_to_a_part(tiny_chat_bundle: Path) -> None:
    """A clock that ticks once each time that it is asked."""
    ticks = iter(range(10_000))
    bundle = Bundle.open(tiny_chat_bundle)
    ids = Tokenizer.open(bundle).encode(TEXT, special=False)
    runtime = open_runtime(bundle, threads=1)
    marks: list[float] = []
    chain = Chain(bundle, runtime.session(), ids, now=lambda: float(next(ticks)))
    timed = chain.run(Case("chain", MESSAGE, steps=3), lambda: marks.append(float(next(ticks))))
    runtime.close()
    assert marks == [0.0], "once, and before the clock is read"
    assert list(timed.parts) == ["template", "tokenize", "prefill", "sample", "detokenize", "decode"]
    assert sum(timed.parts.values()) == timed.seconds
    assert timed.parts["prefill"] == 1
    assert sum(timed.steps) == pytest.approx(12)


def test_without_a_template_the_text_goes_in_as_it_is(plain_bundle: Path) -> None:
    bundle = Bundle.open(plain_bundle)
    assert bundle.text.chat_template is None
    runtime = open_runtime(bundle, threads=1)
    session = runtime.session()
    ids = Tokenizer.open(bundle).encode(TEXT, special=False)
    timed = Chain(bundle, session, ids).run(Case("chain", 8, steps=4))
    assert "template" not in timed.parts
    assert session.length <= session.max_context
    runtime.close()
