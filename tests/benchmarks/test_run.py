"""A run over real bundles: every case in every round, in processes of their own; errors in one line; Ctrl-C keeps rounds."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.benchmarks import result
from edgellm.benchmarks.machine import peak_rss
from edgellm.benchmarks.result import Run, Settings
from edgellm.benchmarks.run import labels, measure
from edgellm.bundle import Bundle, sha256_file
from edgellm.errors import BundleError, InferenceError, RuntimeUnavailable, UsageError
from tests import tiny_folder

SMALL = Settings(threads=(1,), prompts=(8, 24), depths=(0, 32), decode=6, trials=2)
CASES = {
    *("load", "prefill 8", "prefill 24", "first token after 8", "first token after 24", "first token after 24, cached"),
    *("decode after 0", "decode after 32", "chain after 8"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("run")
    edgellm.convert(tiny_folder.write(folder / "source", context=64), folder / "bundle", target="both")
    return Bundle.open(folder / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(bundle: Bundle, steps: list[str]) -> Run:
    """Both runtimes, this process having held more memory than a tiny model needs."""
    np.ones(300 << 20, np.uint8).sum()
    return measure([bundle], (), SMALL, command="edgellm bench bundle", progress=steps.append)


def test_every_case_is_there_in_every_round_and_lane(run: Run) -> None:
    assert [lane.id for lane in run.lanes] == ["bundle onnx 1", "bundle tflite 1"]
    assert [lane.failed for lane in run.lanes] == [None, None]
    for lane in run.lanes:
        for number in range(SMALL.trials + 1):
            mine = [each.case for each in run.samples if (each.lane, each.round) == (lane.id, number)]
            warm = [case.name for case in mine if case.state != "cold"]
            assert len(warm) == len(CASES), "each once"
            assert set(warm) == CASES
    assert all(each.seconds > 0 and each.at >= 0 for each in run.samples)
    assert run.complete


def test_rounds_are_interleaved_and_in_no_fixed_order(run: Run, steps: list[str]) -> None:
    rounds = [each.round for each in sorted(run.samples, key=lambda each: each.at)]
    assert rounds == sorted(rounds)
    assert {each.lane for each in run.samples if each.round == 1} == {lane.id for lane in run.lanes}
    orders = {
        tuple(each.case for each in run.samples if (each.lane, each.round) == (lane.id, number) and each.case.state != "cold")
        for lane in run.lanes
        for number in range(SMALL.trials + 1)
    }
    assert len(orders) > 1
    lanes = {
        tuple(dict.fromkeys(each.lane for each in run.samples if each.round == number)) for number in range(SMALL.trials + 1)
    }
    assert len(lanes) == 2, "either one begins, in one round or another"
    assert "bundle onnx 1: the first load" in steps
    assert "round 2 of 2, bundle tflite 1: decode after 32" in steps


def test_a_chain_comes_last_so_that_its_tokenizer_is_in_no_other_s_memory(run: Run) -> None:
    for lane in run.lanes:
        for number in range(SMALL.trials + 1):
            mine = [each for each in run.samples if (each.lane, each.round) == (lane.id, number)]
            assert max(mine, key=lambda each: each.at).case.kind == "chain"


def test_steps_parts_and_tokens_are_kept(run: Run) -> None:
    for each in run.samples:
        if each.case.kind in ("decode", "chain"):
            assert len(each.steps) == SMALL.decode
        if each.case.kind == "decode":
            assert len(each.tokens) == SMALL.decode + 1
        if each.case.kind == "chain":
            assert set(each.parts) >= {"tokenize", "prefill", "sample", "decode", "detokenize"}
            assert sum(each.parts.values()) == pytest.approx(each.seconds, rel=0.01)
    told = {(each.lane, each.case, each.tokens) for each in run.samples if each.tokens}
    assert len(told) == len({(lane, case) for lane, case, _ in told}), "the same tokens in every round"
    assert all(lane.agreement is not None and lane.agreement >= 0.9 for lane in run.lanes)


def test_a_lane_says_what_ran(run: Run, bundle: Bundle) -> None:
    onnx, tflite = run.lanes
    assert onnx.digest == tflite.digest == sha256_file(bundle.path / "edgellm.json")
    assert onnx.versions["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert tflite.versions["ai-edge-litert"] == importlib.metadata.version("ai-edge-litert")
    assert onnx.versions["edgellm"] == edgellm.__version__
    spec = bundle.spec
    attention = spec.attention(0)
    width = attention.heads * attention.head_dim
    linears = 2 * spec.hidden_size * (width + attention.kv_heads * attention.head_dim)
    linears += 3 * spec.hidden_size * spec.intermediate_size
    assert onnx.products == linears * len(spec.layers)
    (kv,) = bundle.graphs["onnx"].kv
    kept = 2 * len(spec.layers) * attention.kv_heads * attention.head_dim
    assert onnx.cache_bytes == kept * np.dtype(kv.dtype).itemsize
    assert onnx.size == sum(bundle.files[name].size for name in bundle.files_of(bundle.graphs["onnx"]))
    assert onnx.weight_bytes is not None
    assert 0 < onnx.weight_bytes <= onnx.size


@pytest.mark.skipif(peak_rss() is None, reason="the system does not tell")
def test_memory_is_the_lane_s_and_not_the_caller_s(run: Run) -> None:
    here = peak_rss()
    assert here is not None
    for each in run.samples:
        assert each.rss is not None
        assert 20 << 20 < each.rss < here - (150 << 20)


def test_the_machine_is_measured_with_the_lanes_threads_in_every_round(run: Run) -> None:
    assert {(each.what, each.threads, each.round) for each in run.probes} == {
        (what, 1, number) for what in ("bandwidth", "int8") for number in range(SMALL.trials + 1)
    }
    assert all(each.value > 1e8 for each in run.probes)
    assert len(run.moments) == SMALL.trials + 3, "before, after, and after each round"


def test_what_was_written_reads_back(run: Run, tmp_path: Path) -> None:
    result.write(run, tmp_path / "run.json")
    assert result.read(tmp_path / "run.json") == run


def test_a_cold_load_is_there_only_where_storage_was_read(run: Run) -> None:
    """A tiny file on some file systems never leaves memory: then there is no such figure."""
    cold = [each for each in run.samples if each.case.state == "cold"]
    by_lane = {lane.id: [each for each in cold if each.lane == lane.id] for lane in run.lanes}
    for mine in by_lane.values():
        for load, first in zip(mine[::2], mine[1::2], strict=True):
            assert (load.case.kind, first.case.kind) == ("load", "first token")
            assert first.seconds > load.seconds


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no folder that lies in memory")
def test_files_that_never_leave_memory_have_no_cold_load(bundle: Bundle) -> None:
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        copy = Bundle.open(shutil.copytree(bundle.path, Path(folder) / "bundle"))
        run = measure([copy], ("onnx",), settings, command="")
    assert [each for each in run.samples if each.case.state == "cold"] == []
    assert "bundle onnx 1: a cold load, because its files could not be driven out of memory" in run.notes


def delivered(folder: Path) -> bool:
    """Whether storage has to give a folder's files again that the system was asked to forget."""
    io = Path("/proc/self/io")
    if not hasattr(os, "posix_fadvise") or not io.exists():
        return False
    files, counts = [file for file in folder.iterdir() if file.is_file()], list[int]()
    for file in files:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())  # what is not written yet cannot be forgotten
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in range(2):
        counts.append(int(io.read_text(encoding="ascii").partition("\nread_bytes:")[2].split()[0]))
        assert sum(len(file.read_bytes()) for file in files) > 100_000
    return counts[1] - counts[0] > 100_000


def test_where_storage_has_to_deliver_there_is_a_cold_load_in_every_round(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    if not delivered(copy):
        pytest.skip("files of this system are never driven out of memory")
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1)
    run = measure([Bundle.open(copy)], ("onnx",), settings, command="")
    cold = [(each.round, each.case.kind) for each in run.samples if each.case.state == "cold"]
    assert cold == [(number, kind) for number in (0, 1) for kind in ("load", "first token")]
    loaded, answered = (each for each in run.samples if each.case.state == "cold" and each.round == 1)
    assert answered.at == loaded.at, "the load is in it, with all that it took"
    assert answered.seconds > loaded.seconds
    assert answered.cpu is not None
    assert loaded.cpu is not None
    assert answered.cpu > loaded.cpu > 0
    assert (answered.rss or 0) >= (loaded.rss or 0) > 0


def test_what_is_packed_at_the_first_load_is_there_before_the_first_round(bundle: Bundle, cache: Path) -> None:
    def look(step: str) -> None:
        if step.startswith("warm-up"):
            found.append([file for file in (cache / "packed").glob("*") if not file.suffix and file.is_file()])

    found: list[list[Path]] = []
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1)
    measure([bundle], ("tflite",), settings, command="", progress=look)
    assert len(found[0]) == 1


def test_a_sustained_run(bundle: Bundle) -> None:
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1, sustained=1.5)
    run = measure([bundle], ("onnx",), settings, command="")
    samples = [each for each in run.samples if each.case.kind == "sustained"]
    assert [each.round for each in samples] == [1]
    assert 0.3 < sum(samples[0].steps) <= 6.5


@pytest.mark.parametrize(
    ("runtimes", "settings", "words"),
    [
        (("abacus",), SMALL, "no graph for the runtime 'abacus'; it has: onnx, tflite"),
        ((), Settings(threads=(5000,), prompts=(8,), depths=(0,), decode=2), "threads is 5000; use 1 to 1024"),
        ((), Settings(prompts=(128,)), "no case fits a context of 64 tokens; ask for shorter prompts"),
        ((), Settings(prompts=()), "--prompt: nothing is too small"),
        ((), Settings(trials=0), "--trials: 0 is too small"),
    ],
)
def test_what_makes_no_sense_is_one_line(bundle: Bundle, runtimes: tuple[str, ...], settings: Settings, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        measure([bundle], runtimes, settings, command="")


def test_one_bundle_twice_and_two_of_one_name(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the same bundle twice"):
        measure([bundle, bundle], (), SMALL, command="")
    assert labels([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]) == ["a/x", "b/x", "b/y"]
    assert labels([tmp_path / "x"]) == ["x"]


def test_a_bundle_that_is_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever names."""
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    monkeypatch.chdir(tmp_path)
    for other in (Path("x"), tmp_path / "link", tmp_path / "x" / ".." / "x"):
        with pytest.raises(UsageError, match="the same bundle twice; give it once"):
            labels([tmp_path / "x", tmp_path / "y", other])


def test_a_lane_that_fails_is_said_and_the_others_go_on(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ai_edge_litert'] = None\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1)
    run = measure([bundle], ("onnx", "tflite"), settings, command="")
    assert run.lanes[0].failed is None
    assert "pip install edgellm[tflite]" in str(run.lanes[1].failed)
    assert {each.lane for each in run.samples} == {"bundle onnx 1"}
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgellm\[tflite\]"):
        measure([bundle], ("tflite",), settings, command="")


@pytest.mark.skipif(sys.platform == "win32", reason="ends by signal")
def test_a_process_that_dies_is_an_error_and_no_result(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that the system kills for want of memory."""
    code = "import os, signal\nif os.environ.get('DIE'): os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("DIE", "1")
    with pytest.raises(InferenceError, match="ended with status -9; free memory"):
        measure([bundle], ("onnx",), SMALL, command="")


@pytest.mark.skipif(sys.platform == "win32", reason="asks by signal 0")
def test_ctrl_c_keeps_the_rounds_that_are_done_and_leaves_no_process(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os\nopen({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1000)

    def interrupt(round_: str, case: str) -> object:
        def look(step: str) -> None:
            if step.startswith(round_) and case in step:
                raise KeyboardInterrupt

        return look

    run = measure([bundle], ("onnx",), settings, command="", progress=interrupt("round 2", "prefill"))  # type: ignore[arg-type]
    assert not run.complete
    assert {each.round for each in run.samples} == {0, 1}
    with pytest.raises(KeyboardInterrupt):  # of a warm-up alone nothing can be said
        measure([bundle], ("onnx",), settings, command="", progress=interrupt("warm-up", "prefill"))  # type: ignore[arg-type]
    for pid in (tmp_path / "pids").read_text(encoding="utf-8").split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), signal.SIG_DFL)


def test_no_module_of_the_folder_where_the_user_stands_is_run(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bundle that came from somewhere: `cd bundle && edgellm bench .`"""
    (tmp_path / "dataclasses.py").write_text("open('was-run', 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    measure([bundle], ("onnx",), Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1), command="")
    assert not (tmp_path / "was-run").exists()


def test_a_bundle_that_changes_while_it_is_measured(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    opened = Bundle.open(folder)
    (folder / bundle.graphs["onnx"].file).unlink()
    with pytest.raises(BundleError, match="missing"):
        measure([opened], ("onnx",), SMALL, command="")
