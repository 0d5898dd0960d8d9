"""A measurement in a process of its own: the same report, a peak of its own, and errors as if measured here."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.benchmarks.apart import measure_apart
from edgellm.benchmarks.harness import Settings, measure
from edgellm.benchmarks.machine import peak_rss
from edgellm.errors import BundleError, EdgeError, InferenceError, RuntimeUnavailable, UsageError
from tests import tiny_folder

SMALL = Settings(prompts=(16, 48), decode=8, trials=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apart")
    edgellm.convert(tiny_folder.write(folder / "source", context=64), folder / "bundle", target="both")
    return folder / "bundle"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_the_report_is_the_one_that_a_measurement_here_makes(bundle: Path, runtime: str) -> None:
    heard: list[str] = []
    apart = measure_apart(bundle, SMALL, runtime=runtime, threads=1, progress=heard.append)
    here = measure(bundle, SMALL, runtime=runtime, threads=1)
    assert heard == ["the first load", "load", "prefill 16", "prefill 48", "decode 8"]
    fields = ("bundle", "source", "recipe", "runtime", "threads", "settings", "machine", "versions", "notes")
    assert [getattr(apart, name) for name in fields] == [getattr(here, name) for name in fields]
    shapes = [[(series.name, series.unit, len(series.values)) for series in report.series] for report in (apart, here)]
    assert shapes[0] == shapes[1]
    assert (apart.runtime, apart.decode.name) == (runtime, "decode 8 after 16")
    assert json.loads(json.dumps(apart.to_json(), allow_nan=False))["runtime"] == runtime


@pytest.mark.skipif(peak_rss() is None, reason="the system does not tell")
def test_the_peak_is_the_model_s_and_not_the_caller_s(bundle: Path) -> None:
    """This process has held 300 MB more than a tiny model needs."""
    np.ones(300 << 20, np.uint8).sum()
    here, apart = peak_rss(), measure_apart(bundle, SMALL).peak_rss
    assert here is not None
    assert apart is not None
    assert 20 << 20 < apart < here - (200 << 20)


def test_what_is_packed_at_the_first_load_is_there_before_the_measurement(bundle: Path, cache: Path) -> None:
    def look(case: str) -> None:
        if case == "load":
            found.extend(file for file in (cache / "packed").glob("*") if not file.suffix and file.is_file())

    found: list[Path] = []
    measure_apart(bundle, SMALL, runtime="tflite", progress=look)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"runtime": "abacus"}, UsageError, "no graph for the runtime 'abacus'; it has: onnx, tflite"),
        ({"threads": 0}, UsageError, "threads is 0; use 1 to 1024"),
        ({"settings": Settings(prompts=(64,))}, UsageError, "no case fits a context of 64 tokens; ask for shorter prompts"),
    ],
)
def test_errors_are_those_of_a_measurement_here(
    bundle: Path, change: dict[str, object], kind: type[EdgeError], words: str
) -> None:
    lines = []
    for function in (measure, measure_apart):
        with pytest.raises(kind, match=words) as raised:
            function(bundle, **{"settings": SMALL, **change})  # type: ignore[arg-type]
        lines.append(str(raised.value))
    assert lines[0] == lines[1]


def test_a_missing_bundle_and_a_missing_package(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        measure_apart(tmp_path / "nowhere", SMALL)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ai_edge_litert'] = None\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgellm\[tflite\]"):
        measure_apart(bundle, SMALL, runtime="tflite")


@pytest.mark.skipif(sys.platform == "win32", reason="ends by signal")
def test_a_process_that_dies_is_an_error_and_not_a_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that the system kills for want of memory."""
    code = "import os, signal\nif os.environ.get('DIE'): os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("DIE", "1")
    with pytest.raises(InferenceError, match="ended with status -9; free memory"):
        measure_apart(bundle, SMALL)


@pytest.mark.skipif(sys.platform == "win32", reason="asks by signal 0")
def test_what_progress_raises_ends_the_other_process(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would measure on for nobody: it is gone when the error arrives."""
    code = f"import os\nopen({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    late = threading.Event()

    def give_up() -> None:
        late.set()
        os.kill(pids()[-1], signal.SIGKILL)

    def pids() -> list[int]:
        return [int(pid) for pid in (tmp_path / "pids").read_text(encoding="utf-8").split()]

    def stop(case: str) -> None:
        if case == "prefill 16":  # of which it has minutes before it
            raise KeyboardInterrupt

    deadline = threading.Timer(60, give_up)
    deadline.start()
    with pytest.raises(KeyboardInterrupt):
        measure_apart(bundle, Settings(prompts=(16,), decode=8, trials=10_000_000), threads=1, progress=stop)
    deadline.cancel()
    assert not late.is_set()
    assert len(pids()) == 2
    for pid in pids():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_module_of_the_folder_where_the_user_stands_is_run(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bundle that came from somewhere: `cd bundle && edgellm bench .`"""
    (tmp_path / "dataclasses.py").write_text("open('was-run', 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    measure_apart(tiny_bundle, Settings(prompts=(8,), decode=2, trials=1))
    assert not (tmp_path / "was-run").exists()
