"""`edgellm bench`: the table, the run's file, the report, and the runtime that becomes the default."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgellm as library
from edgellm.benchmarks import result
from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.result import Case, Run
from edgellm.cli.bench import told_apart
from tests.cli.conftest import ROOT, edgellm, start
from tests.runs import a_lane, a_run

SMALL = ("--trials", "1", "--prompt", "8,24", "--depth", "0,16", "--decode", "4")
REASON = "none is measured here, 'edgellm bench' finds the fastest"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decode_rates(run: Run, steps: int) -> dict[str, float]:
    names = {lane.id: lane.runtime for lane in run.lanes}
    case = Case("decode", depth=0, steps=steps)
    return {names[each.lane]: each.median for each in figures(run) if (each.case, each.measure) == (case, "speed")}


def two_lanes(faster: float, **changes: Any) -> Run:
    """ONNX, and TFLite that is so many times as fast."""
    lanes = [a_lane(threads=1), a_lane(threads=1, runtime="tflite")]
    return a_run(lanes, slow={lanes[1].id: 1 / faster}, **changes)


def test_a_runtime_is_the_faster_one_where_rounds_tell_it_apart() -> None:
    run = two_lanes(1.5)
    assert told_apart(run, "smollm2") == decode_rates(run, 64)
    assert set(told_apart(run, "smollm2")) == {"onnx", "tflite"}
    assert told_apart(two_lanes(1 / 1.5), "smollm2")["onnx"] > 1.3 * told_apart(two_lanes(1 / 1.5), "smollm2")["tflite"]


@pytest.mark.parametrize("run", [two_lanes(1.5, trials=2), two_lanes(1.01)], ids=["two rounds", "nearly as fast"])
def test_and_nothing_is_kept_where_they_do_not(run: Run) -> None:
    assert decode_rates(run, 64)["tflite"] != decode_rates(run, 64)["onnx"]
    assert told_apart(run, "smollm2") == {}


def test_both_runtimes_side_by_side(both: Path, tmp_path: Path) -> None:
    with library.load(both) as llm:
        assert llm.runtime.name == "onnx", "nothing is measured yet"
    done = edgellm("bench", both, *SMALL, "--json", tmp_path / "run.json", "--report", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    run = result.read(tmp_path / "run.json")
    assert [lane.runtime for lane in run.lanes] == ["onnx", "tflite"]
    assert run.complete
    assert run.command.startswith("edgellm")
    with library.load(both) as llm:
        assert llm.runtime.name == "onnx", "of one round nothing is told apart"
    for measure in ("load", "prefill 8", "prefill 24", "first token after 24, cached", "decode after 16", "chain after 8"):
        assert f" {measure}" in done.stdout
    for row in ("peak RSS", "files", "of memory's limit", "of the 8-bit peak", "median (lowest to highest)"):
        assert row in done.stdout
    *_, default, machine = done.stdout.splitlines()
    assert default == f"{both.name}: default runtime onnx; {REASON} (these rounds tell no difference; three or more can)"
    for package in ("onnxruntime", "ai-edge-litert"):
        assert f"{package} {importlib.metadata.version(package)}" in machine
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_faster_one_becomes_the_default(both: Path, tmp_path: Path) -> None:
    """Where eight rounds tell them apart; else nothing changes, and it is said."""
    done = edgellm(
        "bench", both, "--trials", "8", "--prompt", "8", "--depth", "0", "--decode", "32", "--json", tmp_path / "run.json"
    )
    assert done.exit_code == 0, done.output
    rates = told_apart(result.read(tmp_path / "run.json"), both.name)
    best = max(rates, key=lambda name: rates[name], default="onnx")
    said = f"it decodes {rates[best]:,.1f} tokens/s here, " if rates else f"{REASON} (these rounds tell no difference"
    with library.load(both) as llm:
        assert llm.runtime.name == best
    assert f"{both.name}: default runtime {best}; {said}" in done.stdout


@pytest.mark.parametrize("options", [("--runtime", "tflite"), ("--threads", "1")])
def test_one_runtime_or_other_threads_change_no_default(both: Path, cache: Path, options: tuple[str, str]) -> None:
    value = json.loads(edgellm("bench", both, *SMALL, "--json", "-", *options).stdout)
    measured = ["tflite"] if options[1] == "tflite" else ["onnx", "tflite"]
    assert [lane["runtime"] for lane in value["lanes"]] == measured
    assert not (cache / "tuned").exists()


def test_threads_and_bundles_are_lanes_of_one_run(both: Path, bundle: Path) -> None:
    done = edgellm("bench", both, bundle, *SMALL, "--runtime", "onnx", "--threads", "1,2", "--json", "-")
    lanes = json.loads(done.stdout)["lanes"]
    assert [lane["id"] for lane in lanes] == [f"{path.name} onnx {count}" for path in (both, bundle) for count in (1, 2)]


def test_what_is_installed_is_measured(both: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n", encoding="utf-8")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "EDGELLM_CACHE": str(cache)}
    with start("bench", both, *SMALL, environment=environment) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"{both.name}: default runtime tflite; the only one of the bundle's that is installed" in output.decode()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", "two"), "not a list like 128,512 of numbers of 1 or more"),
        (("--prompt", "0"), "not a list like 128,512 of numbers of 1 or more"),
        (("--depth", "-1"), "not a list like 128,512 of numbers of 0 or more"),
        (("--sustained", "10"), "not a time like 90s or 10m"),
        (("--report", "report.pdf"), ".html or .md"),
        (("--runtime", "abacus"), "no graph for the runtime 'abacus'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(bundle: Path, options: tuple[str, str], words: str) -> None:
    done = edgellm("bench", bundle, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_keeps_the_rounds_that_are_done(bundle: Path, tmp_path: Path, cache: Path) -> None:
    """As a terminal sends it: to the command and to the process that measures."""
    environment = {**os.environ, "EDGELLM_CACHE": str(cache)}
    command = [sys.executable, "-m", "edgellm", "bench", str(bundle), *SMALL, "--json", str(tmp_path / "run.json")]
    command[command.index("--trials") + 1] = "1000"
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=25)  # time for a round or several
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.decode().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in errors
    run = result.read(tmp_path / "run.json")
    assert not run.complete
    assert max(each.round for each in run.samples) >= 1
    assert b"peak RSS" in output
