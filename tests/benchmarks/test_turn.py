"""One turn, in this process and in one of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgellm.benchmarks import turn
from edgellm.benchmarks.turn import ANSWER, Turn, apart, measure
from edgellm.conversion import convert
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable, UsageError
from edgellm.runtimes.tuned import How
from tests import tiny_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    return convert(tiny_folder.write(folder / "source", context=600), folder / "tiny", target="both").path


class Clock:
    """Each token of a prompt takes 10 ms, each step `step` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float = 0.02) -> None:
        from edgellm.runtimes import onnx

        self.now, self.steps, self.prompts = 0.0, 0, list[int]()
        prefill, decode = onnx.OnnxSession.prefill, onnx.OnnxSession.decode
        clock = self

        def slow_prefill(session: onnx.OnnxSession, ids: list[int]) -> object:
            clock.prompts.append(len(ids))
            clock.now += 0.01 * len(ids)
            return prefill(session, ids)

        def slow_decode(session: onnx.OnnxSession, token: int) -> object:
            clock.steps += 1
            clock.now += step
            return decode(session, token)

        monkeypatch.setattr(onnx.OnnxSession, "prefill", slow_prefill)
        monkeypatch.setattr(onnx.OnnxSession, "decode", slow_decode)
        monkeypatch.setattr(turn.time, "perf_counter", lambda: self.now)


def test_a_turn_on_a_known_clock(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = measure(bundle, How("onnx", 1, (), 64))
    assert (found.prefill, found.decode) == pytest.approx((2.56, 2.56))
    assert found.seconds == found.prefill + found.decode
    assert (found.chunks, found.chunk) == ((32, 64, 128, 256), 64)
    assert clock.prompts == [65, 256], "one to warm up"
    assert clock.steps == 1 + ANSWER


def test_slow_machines_make_fewer_steps_and_each_stands_for_more(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, step=0.25)
    assert measure(bundle, How("onnx")).decode == pytest.approx(ANSWER * 0.25)
    assert clock.steps == 1 + 16, "four seconds of them"
    clock = Clock(monkeypatch, step=3.0)
    measure(bundle, How("onnx"))
    assert clock.steps == 1 + 8, "eight at the least"


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_apart_says_the_same_of_the_runtime(bundle: Path, name: str) -> None:
    found, here = apart(bundle, How(name, 1)), measure(bundle, How(name, 1))
    assert isinstance(found, Turn)
    assert (found.chunks, found.chunk) == (here.chunks, here.chunk)
    assert min(found.prefill, found.decode) > 0


def test_a_short_context_has_a_shorter_turn(tmp_path: Path) -> None:
    source = tiny_folder.write(tmp_path / "source", context=16)
    assert measure(convert(source, tmp_path / "bundle").path, How("onnx")).seconds > 0


def test_errors_come_over(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        apart(tmp_path / "nowhere", How("onnx"))
    with pytest.raises(UsageError, match="no graph for the runtime 'abacus'; it has: onnx, tflite"):
        apart(bundle, How("abacus"))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ai_edge_litert'] = None\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgellm\[tflite\]"):
        apart(bundle, How("tflite"))


@pytest.mark.skipif(sys.platform == "win32", reason="ends by signal")
def test_a_process_that_dies_is_an_error(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal\nif os.environ.get('DIE'): os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("DIE", "1")
    with pytest.raises(InferenceError, match="ended with status -9; free memory"):
        apart(bundle, How("onnx"))


def test_no_module_of_the_folder_where_the_user_stands_is_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataclasses.py").write_text("open('was-run', 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    apart(bundle, How("onnx", 1))
    assert not (tmp_path / "was-run").exists()
