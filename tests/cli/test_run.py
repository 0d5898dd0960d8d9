from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import edgellm as library
from tests import tiny_folder
from tests.cli.conftest import ROOT, edgellm, start

GREEDY = ("--temperature", "0", "--max-tokens", "12")


def test_the_answer_is_the_library_s(bundle: Path) -> None:
    result = edgellm("run", bundle, "Hi there", *GREEDY)
    assert result.exit_code == 0, result.output
    with library.load(bundle) as llm:
        expected = llm.chat([{"role": "user", "content": "Hi there"}], temperature=0, max_tokens=12)
    assert result.stdout == expected.text + "\n"
    assert result.stderr == ""


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_the_runtime_that_is_asked_for_answers(both: Path, runtime: str) -> None:
    """The two round to other grids, so a random model says something else in each."""
    result = edgellm("run", both, "Hi there", "--runtime", runtime, *GREEDY)
    assert result.exit_code == 0, result.output
    answers = {}
    for name in ("onnx", "tflite"):
        with library.load(both, runtime=name) as llm:
            answers[name] = llm.chat([{"role": "user", "content": "Hi there"}], temperature=0, max_tokens=12).text
    assert answers["onnx"] != answers["tflite"]
    assert result.stdout == answers[runtime] + "\n"
    assert edgellm("chat", both, "--runtime", runtime, *GREEDY, input="Hi there\n").stdout == answers[runtime] + "\n"


@pytest.mark.parametrize("command", [("run", "hi"), ("chat",), ("bench",)])
def test_a_runtime_that_the_bundle_has_not(both: Path, bundle: Path, command: tuple[str, ...]) -> None:
    result = edgellm(command[0], both, *command[1:], "--runtime", "core-ml")
    assert (result.exit_code, result.stdout) == (2, "")
    there = "it has: onnx, tflite; another comes with 'edgellm convert --target'"
    assert result.stderr == f"error: {both}: the bundle has no graph for the runtime 'core-ml'; {there}\n"
    assert "it has: onnx; another" in edgellm(command[0], bundle, *command[1:], "--runtime", "tflite").stderr


@pytest.mark.parametrize(("missing", "left"), [("onnxruntime", "tflite"), ("ai_edge_litert", "onnx")])
def test_a_device_with_one_of_the_two_runtimes_needs_no_option(both: Path, tmp_path: Path, missing: str, left: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n", encoding="utf-8")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with start("run", both, "Hi there", *GREEDY, environment=environment) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert output.decode() == edgellm("run", both, "Hi there", "--runtime", left, *GREEDY).stdout


def test_raw_leaves_the_template_out_and_system_comes_before(bundle: Path) -> None:
    with library.load(bundle) as llm:
        raw = llm.generate("Hi there", temperature=0, max_tokens=12)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]
        with_system = llm.chat(messages, temperature=0, max_tokens=12)
    assert edgellm("run", bundle, "Hi there", "--raw", *GREEDY).stdout == raw.text + "\n"
    assert edgellm("run", bundle, "Hi there", "--system", "Be brief.", *GREEDY).stdout == with_system.text + "\n"
    plain = edgellm("run", bundle, "Hi there", *GREEDY).stdout
    assert len({plain, raw.text + "\n", with_system.text + "\n"}) == 3


def test_json_has_what_generate_gives(bundle: Path) -> None:
    result = edgellm("run", bundle, "Hi", "--json", "--threads", "1", *GREEDY)
    value = json.loads(result.stdout)
    assert sorted(value) == ["finish_reason", "ids", "text", "timings"]
    assert value["finish_reason"] == "length"
    assert len(value["ids"]) == value["timings"]["new_tokens"] == 12
    assert value["timings"]["decode_tokens_per_second"] > 0
    assert value["text"] + "\n" == edgellm("run", bundle, "Hi", *GREEDY).stdout


def test_the_seed_and_the_sampling_options_arrive(bundle: Path) -> None:
    def sample(*options: object) -> str:
        return edgellm("run", bundle, "Hi", "--max-tokens", "24", "--temperature", "1.5", *options).stdout

    assert sample("--seed", 1) == sample("--seed", 1)
    assert sample("--seed", 1) != sample("--seed", 2)
    greedy = edgellm("run", bundle, "Hi", "--max-tokens", "24", "--temperature", "0").stdout
    for nearly_greedy in (("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1)):
        assert sample("--seed", 1, *nearly_greedy) == greedy
    penalized = edgellm("run", bundle, "Hi", "--max-tokens", "24", "--temperature", "0", "--repetition-penalty", "50")
    ids = json.loads(
        edgellm("run", bundle, "Hi", "--json", "--max-tokens", "24", "--temperature", "0", "--repetition-penalty", "50").stdout
    )["ids"]
    assert penalized.exit_code == 0
    assert len(set(ids)) == len(ids)


def test_a_prompt_from_standard_input(bundle: Path) -> None:
    piped = edgellm("run", bundle, "-", *GREEDY, input="Hi there")
    assert piped.stdout == edgellm("run", bundle, "Hi there", *GREEDY).stdout


def test_an_empty_prompt_and_one_that_is_too_long(bundle: Path) -> None:
    empty = edgellm("run", bundle, "", "--raw")
    assert (empty.exit_code, empty.stderr) == (2, "error: the prompt is empty; give some text, or token ids\n")
    long = edgellm("run", bundle, "x" * 5000, "--raw")
    assert long.exit_code == 2
    assert "5000 tokens and the context 4096" in long.stderr


def test_a_full_context_is_said(source: Path, tmp_path: Path) -> None:
    assert edgellm("convert", source, "-o", tmp_path / "short", "--max-context", "40").exit_code == 0
    result = edgellm("run", tmp_path / "short", "0123456789", "--raw", "--temperature", "0")
    assert (result.exit_code, result.stderr) == (0, "the context is full\n")


def test_without_a_chat_template_the_text_is_continued(tmp_path: Path) -> None:
    base = tiny_folder.write(tmp_path / "base", template=None)
    assert edgellm("convert", base, "-o", tmp_path / "bundle").exit_code == 0
    result = edgellm("run", tmp_path / "bundle", "Hi there", *GREEDY)
    assert result.stdout == edgellm("run", tmp_path / "bundle", "Hi there", "--raw", *GREEDY).stdout
    assert "no chat template" in result.stderr
    asked = edgellm("run", tmp_path / "bundle", "Hi there", "--system", "Be brief.")
    assert (asked.exit_code, asked.stdout) == (2, "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_the_answer_with_status_130(bundle: Path) -> None:
    with start("run", bundle, "hello", "--max-tokens", "4000", "--temperature", "0") as process:
        assert process.stdout is not None
        first = process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"interrupted\n")
    assert (first + rest).endswith(b"\n")
    assert 8 <= len(first + rest) < 4000


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX command line is bytes")
def test_a_prompt_that_is_no_text(bundle: Path) -> None:
    with start("run", bundle, "caf\udce9", *GREEDY) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 2)
    assert b"Traceback" not in errors
