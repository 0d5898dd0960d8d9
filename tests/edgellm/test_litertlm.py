"""A bundle as a .litertlm: what LiteRT-LM's own tools read in it, what its runtime says with it, and what cannot be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import litert_lm
import numpy as np
import pytest
from litert_lm_builder import LitertLmFileBuilder
from tokenizers import Tokenizer, processors

import edgellm
from edgellm.chat_template import ChatTemplate
from edgellm.conversion import Progress, convert
from edgellm.converters.litertlm import chat_template
from edgellm.errors import BundleError, ResourceError, UsageError
from edgellm.litertlm import DEFAULT_CONTEXT, check_litertlm, export_litertlm
from tests import litertlm_model, synthetic, tiny_folder
from tests.chat_templates import AGAIN, ANSWER, ASK, SPECIAL, SYSTEM, TEMPLATES

GREEDY = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
WORDS = "Hello there"
BROKEN = "\ufffd"  # an unfinished character


@pytest.fixture(scope="module")
def bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_source, tmp_path_factory.mktemp("bundle") / "tiny", target="tflite", method="imatrix", kv="fp32").path


@pytest.fixture(scope="module")
def exported(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_litertlm(bundle, tmp_path_factory.mktemp("file") / "tiny.litertlm", max_context=256)


def engine(file: Path) -> litert_lm.Engine:
    return litert_lm.Engine(str(file), cache_dir=str(file.parent), activation_data_type=litert_lm.ActivationDataType.FLOAT32)


def unpacked(file: Path, folder: Path) -> dict[str, bytes]:
    """The sections by LiteRT-LM's own reader, by the beginning of their file's name."""
    LitertLmFileBuilder.unpack(str(file), str(folder))
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_its_own_tools_find_the_bundle_in_it(bundle: Path, exported: Path, tmp_path: Path) -> None:
    check_litertlm(exported)
    sections = unpacked(exported, tmp_path)
    (packed,) = (content for name, content in sections.items() if "okenizer" in name)
    assert zlib.decompress(packed[8:]) == (bundle / "tokenizer.json").read_bytes()
    (model,) = (name for name in sections if name.endswith(".tflite"))
    ours, theirs = (litertlm_model.dequantized(path) for path in (bundle / "model.tflite", tmp_path / model))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(theirs[name], values) for name, values in ours.items())
    with engine(exported) as loaded:
        assert loaded.eos_token_ids == [[2]]
        assert loaded.bos_token_id is None


def test_the_same_greedy_tokens(bundle: Path, exported: Path) -> None:
    """A conversation's first turn, and a plain text."""
    with edgellm.load(bundle) as llm, engine(exported) as loaded:
        wanted = llm.chat([{"role": "user", "content": WORDS}], max_tokens=40, temperature=0)
        assert answer(loaded, WORDS, 40) == spelled(llm, wanted.ids)
        wanted = llm.generate(WORDS, max_tokens=40, temperature=0)
        assert continuation(loaded, WORDS, 44).startswith(spelled(llm, wanted.ids).rstrip(BROKEN))


LITERAL = "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
VARIABLE = LITERAL.replace("<|start|>", "{{ bos_token if loop.first }}")
NONE = LITERAL.replace("<|start|>", "")
TYPED = "{% for m in messages %}{{ '[' + m.content + ']' if m.content is string else m.content.no.such }}{% endfor %}"
SPACED = "   {% if true %}\nA\n   {% endif %}\n{% for m in messages %}\n{{ m.content + bos_token }}\n{% endfor %}\n"


@pytest.mark.parametrize("adds", [True, False], ids=["tokenizer adds a start", "tokenizer adds none"])
@pytest.mark.parametrize("template", [LITERAL, VARIABLE, NONE, TYPED, SPACED, "\nB{{ messages[0].content }}\n", None])
def test_the_ids_that_reach_the_model_are_ours(tmp_path: Path, adds: bool, template: str | None) -> None:
    """Whoever writes the start token, it is there once, or not at all; and line breaks are as transformers renders them."""
    source = tiny_folder.write(tmp_path / "source", template=template)
    if adds:
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
        tokenizer.save(str(source / "tokenizer.json"))
    made = convert(source, tmp_path / "bundle", target="tflite", quant="fp32")
    file = export_litertlm(made.path, tmp_path / "tiny.litertlm", max_context=128)
    with edgellm.load(made.path) as llm, engine(file) as loaded:
        if template is None:
            wanted = llm.generate(WORDS, max_tokens=12, temperature=0)
            count = len(llm.tokenizer.encode(WORDS))
            assert continuation(loaded, WORDS, 16).startswith(spelled(llm, wanted.ids).rstrip(BROKEN))
        else:
            wanted = llm.chat([{"role": "user", "content": WORDS}], max_tokens=12, temperature=0)
            count = wanted.timings.prompt_tokens
        conversation = loaded.create_conversation(sampler_config=GREEDY)
        assert str(conversation.send_message(WORDS, max_output_tokens=12)) == spelled(llm, wanted.ids)
        assert conversation.token_count == count + 12
        conversation.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_its_template_engine_reads_what_we_write(exported: Path, name: str) -> None:
    """Prompts with and without something before them, as Jinja renders the model's own template."""
    own = ChatTemplate(TEMPLATES[name], SPECIAL)
    end = SPECIAL["eos_token"]
    with engine(exported) as loaded:
        for start in (None, SPECIAL["bos_token"]):
            adapted = chat_template(TEMPLATES[name], SPECIAL, start=start, end=end)
            for before in ([], [SYSTEM], [ASK, ANSWER], [SYSTEM, ASK, ANSWER]):
                conversation = loaded.create_conversation(messages=before, chat_template=adapted)
                wanted = own.render([*before, AGAIN]).removeprefix(start or "")
                added = conversation.render_message_to_string(AGAIN)
                conversation.close()
                assert added == wanted, (start, before)


def answer(loaded: litert_lm.AbstractEngine, words: str, tokens: int) -> str:
    conversation = loaded.create_conversation(sampler_config=GREEDY)
    text = str(conversation.send_message(words, max_output_tokens=tokens))
    conversation.close()
    return text


def continuation(loaded: litert_lm.AbstractEngine, words: str, tokens: int) -> str:
    """LiteRT-LM's greedy text behind a plain prompt, in so many pieces of one or more tokens."""
    session = loaded.create_session(apply_prompt_template=False, sampler_config=GREEDY)
    session.run_prefill([words])
    said = "".join(part.texts[0] for _, part in zip(range(tokens), session.run_decode_async(), strict=False))
    session.cancel_process()
    session.close()
    return said


def spelled(llm: edgellm.LLM, ids: tuple[int, ...]) -> str:
    """The tokenizers library's text, which LiteRT-LM gives too."""
    text: str = Tokenizer.from_file(str(llm.bundle.file("tokenizer.json"))).decode(list(ids))
    return text


def test_the_context_is_the_bundles_or_shorter(bundle: Path, tiny_source: Path, tmp_path: Path) -> None:
    """The cache has room for it, and for the padding of a prefill behind it; the runtime stops where it ends."""
    short = convert(tiny_source, tmp_path / "short", target="tflite", quant="fp32", max_context=40)
    for source, asked, wanted in ((bundle, None, DEFAULT_CONTEXT), (short.path, None, 40), (short.path, 24, 24)):
        folder = tmp_path / f"{source.name}-{asked}"
        file = export_litertlm(source, folder / "tiny.litertlm", max_context=asked)
        sections = unpacked(file, folder / "sections")
        (model,) = (name for name in sections if name.endswith(".tflite"))
        assert litertlm_model.Executor(folder / "sections" / model).capacity == wanted + 128
        (text,) = (content.decode() for name, content in sections.items() if "etadata" in name)
        assert f"max_num_tokens: {wanted}\n" in text
    with engine(file) as loaded:
        conversation = loaded.create_conversation(sampler_config=GREEDY, chat_template="{{ messages[0].content[0].text }}")
        conversation.send_message("Hello there!", max_output_tokens=100)
        assert conversation.token_count == 24
        conversation.close()


@pytest.mark.parametrize("asked", [0, -1, 4097, 1 << 40, "64"])
def test_a_context_that_makes_no_sense(bundle: Path, tmp_path: Path, asked: object) -> None:
    with pytest.raises(UsageError, match="--max-context"):
        export_litertlm(bundle, tmp_path / "file.litertlm", max_context=asked)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_the_caller_sees_of_it(bundle: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    file = export_litertlm(bundle, tmp_path / "new" / "folder" / "file.litertlm", progress=seen.append)
    assert file == tmp_path / "new" / "folder" / "file.litertlm"
    assert [entry.name for entry in file.parent.iterdir()] == ["file.litertlm"]
    assert seen[-1].done == seen[-1].total > 0


def test_a_name_that_litert_lm_does_not_take(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"LiteRT-LM takes files named \*\.litertlm only; name it model\.litertlm"):
        export_litertlm(bundle, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(bundle: Path, tmp_path: Path, existing: str) -> None:
    target = tmp_path / "target.litertlm"
    if existing == "file":
        target.write_text("mine", encoding="utf-8")
    elif existing == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(BundleError, match="exists already; remove it or choose another FILE"):
        export_litertlm(bundle, target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["target.litertlm"]


def test_a_target_that_appears_meanwhile_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.litertlm"
    with pytest.raises(BundleError, match="appeared meanwhile"):
        export_litertlm(bundle, target, progress=lambda _: target.write_text("mine", encoding="utf-8") and None)
    assert target.read_text(encoding="utf-8") == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["target.litertlm"]


def test_an_exception_in_progress_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_litertlm(bundle, tmp_path / "new" / "target.litertlm", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_for_another_runtime(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match="is for onnx, and LiteRT-LM needs a TFLite graph; convert the model with --target tflite"
    ):
        export_litertlm(tiny_bundle, tmp_path / "file.litertlm")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    with (broken / "model.tflite").open("r+b") as file:
        file.seek(-8000, 2)
        file.write(b"damaged")
    with pytest.raises(BundleError, match="content differs"):
        export_litertlm(broken, tmp_path / "file.litertlm")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


def test_damaged_tables_are_no_crash_though_the_manifest_knows_them(bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    graph = broken / "model.tflite"
    with graph.open("r+b") as file:
        file.write(b"\xff\xff\xff\x7f")
    manifest = json.loads((broken / "edgellm.json").read_text(encoding="utf-8"))
    manifest["files"]["model.tflite"]["sha256"] = hashlib.sha256(graph.read_bytes()).hexdigest()
    (broken / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="not a sound TFLite model"):
        export_litertlm(broken, tmp_path / "file.litertlm")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


def test_what_was_packed_is_looked_through_before_it_gets_its_name(bundle: Path, tmp_path: Path) -> None:
    """A disk that forgets: the tables that were written are damaged while the weights follow."""

    def damage(_: Progress) -> None:
        (graph,) = tmp_path.glob(".file.litertlm.partial-*/model.tflite")
        with graph.open("r+b") as file:
            file.write(b"\xff\xff\xff\x7f")

    with pytest.raises(BundleError, match=r"not a sound \.litertlm: an offset leads to byte"):
        export_litertlm(bundle, tmp_path / "file.litertlm", progress=damage)
    assert list(tmp_path.iterdir()) == []


def test_every_stop_token_is_there(tmp_path: Path) -> None:
    """A model that has several; the one that it says at once ends the answer."""
    source = tiny_folder.write(tmp_path / "source")
    first = convert(source, tmp_path / "first", target="tflite", quant="fp32")
    with edgellm.load(first.path) as llm:
        said = llm.chat([{"role": "user", "content": WORDS}], max_tokens=12, temperature=0).ids
    later = next(token for place, token in enumerate(said) if place > 2 and token not in said[:place])
    settings = {"eos_token_id": [2, later]}
    (source / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    made = convert(source, tmp_path / "bundle", target="tflite", quant="fp32")
    file = export_litertlm(made.path, tmp_path / "file.litertlm", max_context=128)
    with edgellm.load(made.path) as llm, engine(file) as loaded:
        assert loaded.eos_token_ids == [[2], [later]]
        text = answer(loaded, WORDS, 40)
        assert text.rstrip(BROKEN) == spelled(llm, said[: said.index(later)]).rstrip(BROKEN)


def test_a_graph_without_the_models_weights(bundle: Path, tiny_source: Path, tmp_path: Path) -> None:
    """The manifest of one recipe with the graph of another one."""
    other = convert(tiny_source, tmp_path / "other", target="tflite", quant="fp32", max_context=512)
    manifest = json.loads((other.path / "edgellm.json").read_text(encoding="utf-8"))
    manifest["spec"]["intermediate_size"] += 32
    (other.path / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=r"no weight 'layers.0.gate.weight\+layers.0.up.weight' of the shape \[320, 64\]"):
        export_litertlm(other.path, tmp_path / "file.litertlm")
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]


def test_a_disk_that_is_too_small_is_said_before_the_work(tiny_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """Room for one copy of 30 MB and some to spare, but not for the two that there are while it is packed."""
    source = synthetic.write(tmp_path / "zeros", hidden=512, intermediate=2048, layers=6, vocab=8000)
    large = convert(source, tmp_path / "large", target="tflite", quant="int8")
    disk = tiny_disk(110)
    with pytest.raises(ResourceError, match=r"packing needs \d+ MB and \d+ MB are free; make room or choose another FILE"):
        export_litertlm(large.path, disk / "out" / "file.litertlm")
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(bundle: Path, tiny_disk: Callable[[int], Path]) -> None:
    """Somebody else writes meanwhile: it was large enough when the work began."""
    disk = tiny_disk(80)

    def fill(_: Progress) -> None:
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    with pytest.raises(ResourceError, match=r"file\.litertlm: the disk is full; make room or choose another FILE"):
        export_litertlm(bundle, disk / "file.litertlm", progress=fill)
    assert [entry.name for entry in disk.iterdir()] == ["other"]


EXPORT_AND_WATCH = """
import re, sys, threading
from pathlib import Path
from edgellm.litertlm import export_litertlm
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.005):
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
watcher = threading.Thread(target=watch)
watcher.start()
try:
    export_litertlm(sys.argv[1], sys.argv[2])
finally:
    over.set()
    watcher.join()
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads anonymous memory from /proc")
def test_a_model_over_two_gigabytes_takes_little_memory_and_runs(tmp_path: Path) -> None:
    """2.2 GiB of zeros, packed within 150 MB of anonymous memory, most of it Python and numpy; LiteRT-LM takes a step."""
    source = synthetic.write(tmp_path / "source", hidden=1024, intermediate=8192, layers=20, vocab=20_000)
    convert(source, tmp_path / "bundle", target="tflite", quant="fp32")
    file = tmp_path / "large.litertlm"
    command = [sys.executable, "-c", EXPORT_AND_WATCH, str(tmp_path / "bundle"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size > 1 << 31
    assert int(done.stdout) < 150 << 10
    with litert_lm.Engine(str(file), cache_dir=":nocache") as loaded:
        assert continuation(loaded, WORDS, 1) == "<|pad|>"
