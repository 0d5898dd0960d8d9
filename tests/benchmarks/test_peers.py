"""The comparison with other engines: its arithmetic on known samples, and whole runs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality, quiet, table
from edgellm.benchmarks.peers.child import Job, _speed
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.measure import open_model, prepare, run_child
from edgellm.errors import RuntimeUnavailable, UsageError

ROOT = Path(__file__).parents[2]
OURS, OURS8, THEIRS, THEIRS8 = "edgellm_onnx:int4-b32", "edgellm_onnx:int8", "llama_cpp:q4_0", "llama_cpp:q8_0"


def sample(engine: str, number: int, decode: float, threads: int = 1, **more: float) -> dict[str, Any]:
    values = {
        "import_ms": 50.0,
        "load_ms": 100.0,
        "prefill_512": 10 * decode,
        "decode_32": decode,
        "rss": 5_000_000,
        "others": 0.01,
    }
    return {"round": number, "model": "tiny", "engine": engine, "threads": threads, **values, **more}


def spread_out(engine: str) -> list[float]:
    """Per position: the 4-bit pair differs by little but steadily, the 8-bit pair by as much as its own noise."""
    return {
        OURS: [0.1, 0.3, 0.5],
        THEIRS: [0.11, 0.309, 0.511],
        OURS8: [0.001, 0.007, 0.004],
        THEIRS8: [0.004, 0.002, 0.003],
    }[engine]


@pytest.fixture
def report() -> dict[str, Any]:
    """Three rounds, of which the second failed for the 8-bit peer; the ratio of medians is not the median of ratios."""
    samples = [sample(OURS, number, decode) for number, decode in enumerate((100.0, 120.0, 110.0))]
    samples += [sample(THEIRS, number, decode, rss=10_000_000) for number, decode in enumerate((50.0, 100.0, 110.0))]
    samples += [sample(OURS8, number, 30.0) for number in range(3)]
    samples += [sample(THEIRS8, 0, 60.0), sample(THEIRS8, 2, 40.0)]
    samples += [{"round": 1, "model": "tiny", "engine": THEIRS8, "threads": 1, "error": "it fell over"}]
    bits = {OURS: 4, OURS8: 8, THEIRS: 4, THEIRS8: 8}
    kls = {OURS: 0.30, OURS8: 0.004, THEIRS: 0.31, THEIRS8: 0.003}
    return {
        "schema": 2,
        "command": "python -m edgellm.benchmarks.peers --trials 3",
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {
            "cpu": "A CPU", "features": ["avx2"], "cores": 2, "memory": 8 << 30, "system": "Linux", "python": "CPython 3.11",
        },
        "quiet": {"load": 0.05, "others": 0.0, "busiest": "", "reasons": []},
        "versions": {"edgellm": "0.1", "llama_cpp_python": "9.9"},
        "settings": {"threads": [1], "trials": 3, "prefill": 512, "depths": [32], "steps": 64},
        "models": [{"name": "tiny", "source": "tiny.gguf"}],
        "engines": [
            {
                "model": "tiny", "engine": each, "bits": bits[each], "block": 0 if each == THEIRS8 else 32, "embedding": 8,
                "head": 4 if each == THEIRS else 8, "kv": "f16", "size": 3_000_000,
            } for each in bits
        ],
        "left_out": [{"model": "tiny", "engine": "openvino:int4", "reason": "openvino is not installed; pip install openvino"}],
        "quality": [
            {
                "model": "tiny", "engine": each, "kl": kls[each], "kl_error": 0.001, "top1": 0.9,
                "divergences": spread_out(each),
            } for each in bits
        ],
        "samples": samples,
    }  # fmt: skip


def row(text: str, *starts: str) -> list[str]:
    """Cells of the one row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith("| " + " | ".join(starts) + " |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_medians_with_lowest_and_highest(report: dict[str, Any]) -> None:
    cells = row(table.markdown(report), OURS)
    assert cells[:5] == [OURS, "4, block 32", "8, 8", "f16", "3"]
    assert cells[5:7] == ["50 (50-50)", "100 (100-100)"]
    assert cells[7:] == ["1100 (1000-1200)", "110 (100-120)", "5", "0.3000 ± 0.0010", "0.900"]
    assert row(table.markdown(report), THEIRS8)[1] == "8, row"


def test_ratios_are_median_to_median_with_the_spread_of_the_rounds(report: dict[str, Any]) -> None:
    cells = row(table.markdown(report), "onnx:int4-b32", THEIRS)
    ratio = "1.10 (1.00-2.00)"  # of 110 and 100; in the rounds it is 2.0, 1.2 and 1.0, whose median would be 1.20
    assert cells[2] == "8, 8 / 8, 4"
    assert cells[3:] == [ratio, ratio, "1.00 (1.00-1.00)", "0.50 (0.50-0.50)", "0.3000 / 0.3100", "yes"]


def test_a_failed_round_is_in_no_ratio_and_is_named(report: dict[str, Any]) -> None:
    text = table.markdown(report)
    cells = row(text, "onnx:int8", THEIRS8)
    assert cells[4] == "0.60 (0.50-0.75)"  # 30 to the median of 60 and 40, of rounds 0 and 2
    assert cells[-2:] == ["0.0040 / 0.0030", "tie"]
    assert text.rstrip().partition("Failed:")[2].split("\n") == ["", "", f"- tiny, {THEIRS8}: it fell over"]


def test_a_report_of_the_first_schema_is_still_drawn(report: dict[str, Any]) -> None:
    for each in report["engines"]:
        for name in ("block", "embedding", "head", "kv"):
            del each[name]
    for each in report["samples"]:
        each.pop("import_ms", None)
    text = table.markdown(report)
    assert row(text, OURS)[1:7] == ["4", "-", "-", "3", "-", "100 (100-100)"]
    assert row(text, "onnx:int4-b32", THEIRS)[2:4] == ["- / -", "1.10 (1.00-2.00)"]


def test_a_clearly_higher_kl_is_no_tie(report: dict[str, Any]) -> None:
    (ours,) = (each for each in report["quality"] if each["engine"] == OURS)
    ours["divergences"] = [0.2, 0.39, 0.61]
    assert row(table.markdown(report), "onnx:int4-b32", THEIRS)[-1] == "no"


def test_four_bits_are_not_compared_with_eight(report: dict[str, Any]) -> None:
    lines = table.markdown(report).splitlines()
    assert not [line for line in lines if line.startswith((f"| onnx:int4-b32 | {THEIRS8}", f"| onnx:int8 | {THEIRS} "))]


def test_the_table_names_command_machine_versions_and_what_is_left_out(report: dict[str, Any]) -> None:
    text = table.markdown(report)
    for part in (
        "`python -m edgellm.benchmarks.peers --trials 3`", "A CPU (2 cores, 8 GiB; avx2)", "llama_cpp_python 9.9",
        "- tiny, openvino:int4: openvino is not installed; pip install openvino", "Load average at the start 0.05",
    ):  # fmt: skip
        assert part in text
    assert "Not a quiet machine" not in text


def test_a_run_that_others_disturbed_is_marked(report: dict[str, Any]) -> None:
    report["samples"][0]["others"] = 0.7
    assert "**Not a quiet machine** (others kept up to 0.70 processors busy during 1 of 12 runs)" in table.markdown(report)


def test_an_engine_without_any_figures_keeps_its_row(report: dict[str, Any]) -> None:
    report["samples"] = [each for each in report["samples"] if each["engine"] != THEIRS]
    report["quality"] = [each for each in report["quality"] if each["engine"] != THEIRS]
    text = table.markdown(report)
    assert row(text, THEIRS)[5:] == ["-"] * 7
    assert row(text, "onnx:int4-b32", THEIRS)[3:] == ["-"] * 6


def test_kl_is_torchs(rng: np.random.Generator) -> None:
    source, other = (rng.normal(0, 4, (70, 50)).astype(np.float32) for _ in range(2))
    found = quality.compare(source, other)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (source, other))
    rows = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    assert found.kl == pytest.approx(rows.mean().item(), rel=1e-9)
    assert found.kl_error == pytest.approx(rows.std().item() / 70**0.5, rel=1e-9)
    assert found.top1 == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item())
    np.testing.assert_allclose(found.divergences, rows.numpy(), atol=1e-6)


def test_equal_distributions_have_no_distance_and_padding_is_cut(rng: np.random.Generator) -> None:
    source = rng.normal(0, 4, (40, 50)).astype(np.float32)
    padded = np.concatenate([source + 3, np.full((40, 14), 100, np.float32)], axis=1)
    found = quality.compare(source, padded)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_peers_are_found_by_their_files() -> None:
    assert peers.available() == ("edgellm_onnx", "edgellm_tflite", "llama_cpp", "onnxruntime_genai", "openvino_genai")
    chosen = peers.choose(["llama_cpp:q8_0", "llama_cpp"])
    assert chosen == [EngineId("llama_cpp", name) for name in ("q8_0", "q4_0", "q4_0-noflash")]


@pytest.mark.parametrize(("name", "message"), [("tea", "no peer is called 'tea'"), ("llama_cpp:q9", "has no 'q9'")])
def test_unknown_peers_are_errors(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        peers.choose([name])


def test_a_missing_package_is_said_with_how_to_get_it() -> None:
    absent: Any = SimpleNamespace(PACKAGES=("edgellm-test-nowhere",), INSTALL="pip install it")
    with pytest.raises(RuntimeUnavailable, match="edgellm-test-nowhere is not installed; pip install it"):
        peers.versions(absent)


@contextmanager
def busy() -> Iterator[None]:
    """A process that keeps a processor busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_busy_seconds_count_stolen_time_and_no_idling(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    counts = [1, 2, 3, 1000, 500, 4, 5, 6, 70, 80]  # user nice system idle iowait irq softirq steal guest guest_nice
    (tmp_path / "stat").write_text("cpu  " + " ".join(str(count * tick) for count in counts) + "\ncpu0 1 2\n", encoding="ascii")
    assert quiet.busy_seconds(tmp_path / "stat") == 1 + 2 + 3 + 4 + 5 + 6
    assert quiet.busy_seconds(tmp_path / "none") is None


def test_what_is_not_quiet() -> None:
    assert quiet.Quiet(load=0.1, others=0.02).reasons == ()
    assert quiet.Quiet(load=None, others=None).reasons == ()
    assert quiet.Quiet(load=0.9, others=0.9, busiest="make (12)").reasons == (
        "load average 0.90",
        "others keep 0.90 processors busy, most of it make (12)",
    )


def command_line(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "edgellm.benchmarks.peers", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how busy others are")
def test_a_busy_machine_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with busy():
        done = command_line("--models", tiny_source, "--peers", "edgellm_onnx", "--json", tmp_path / "out.json", cache=tmp_path)
    assert done.returncode == 1
    assert "error: the machine is not quiet" in done.stderr
    assert "processors busy" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.fixture(scope="module")
def run(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole run on the tiny model, and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("run")
    wanted = ("edgellm_onnx:int4-b32", "edgellm_onnx:int8", "llama_cpp:q4_0")
    sizes = ("--threads", 1, 2, "--trials", 2, "--prefill", 40, "--depths", 8, 20, "--steps", 4, "--positions", 50)
    files = ("--json", folder / "out.json", "--markdown", folder / "out.md")
    done = command_line("--models", tiny_source, "--peers", *wanted, *sizes, *files, "--noisy", cache=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.md").read_text(encoding="utf-8") in done.stdout
    return json.loads((folder / "out.json").read_text(encoding="utf-8")), folder


def test_every_engine_runs_in_every_round(run: tuple[dict[str, Any], Path]) -> None:
    report, _ = run
    assert report["schema"] == 2
    assert report["command"].endswith("--noisy")
    rounds = [(each["round"], each["threads"]) for each in report["samples"]]
    assert rounds == [(0, 1), (0, 1), (0, 2), (0, 2), (1, 1), (1, 1), (1, 2), (1, 2)]
    assert {(each["round"], each["threads"], each["engine"]) for each in report["samples"]} == {
        (number, threads, engine) for number in (0, 1) for threads in (1, 2) for engine in (OURS, OURS8)
    }
    for each in report["samples"]:
        assert all(each[measure] > 0 for measure in ("import_ms", "load_ms", "prefill_40", "decode_8", "decode_20", "rss")), (
            each
        )


def test_what_cannot_run_is_left_out_and_said(run: tuple[dict[str, Any], Path]) -> None:
    report, folder = run
    (left,) = report["left_out"]
    assert left["engine"] == THEIRS
    assert "not installed" in left["reason"] or "not a GGUF file" in left["reason"]
    assert left["reason"] in (folder / "out.md").read_text(encoding="utf-8")


def test_closeness_is_to_the_source_itself(run: tuple[dict[str, Any], Path], tiny_source: Path) -> None:
    report, folder = run
    (found,) = folder.rglob("source-logits-*.npy")
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_source)
    ids = tokenizer(quality.TEXT.read_text(encoding="utf-8"))["input_ids"][:50]
    assert report["models"][0]["ids"] == ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.load(found), expected, atol=1e-4)
    kl = {each["engine"]: each["kl"] for each in report["quality"]}
    assert 0 < kl[OURS8] < kl[OURS] < 0.5
    assert "Failed:" not in (folder / "out.md").read_text(encoding="utf-8")


def test_tables_are_drawn_from_the_json_alone(run: tuple[dict[str, Any], Path]) -> None:
    _, folder = run
    done = command_line("--from-json", folder / "out.json", cache=folder / "nothing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (folder / "out.md").read_text(encoding="utf-8").strip()


def test_a_childs_memory_is_its_own(run: tuple[dict[str, Any], Path]) -> None:
    """getrusage would count this process at the time of the fork."""
    report, folder = run
    ballast = np.ones(100_000_000, np.float64)
    (bundle,) = folder.rglob("edgellm-onnx-int8")
    job = Job("speed", "edgellm_onnx", "int8", str(bundle), 1, report["models"][0]["ids"], prefill=8, depths=(4,), steps=2)
    assert run_child(job)["rss"] < ballast.nbytes / 2


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    job = Job("speed", "edgellm_onnx", "int8", str(tmp_path / "nothing"), 1, [5, 6], prefill=4, depths=(2,), steps=1)
    found = run_child(job)
    assert list(found) == ["error"]
    assert "BundleError" in found["error"]


class Loop:
    """An engine that is asked for tokens; its clock is known."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def time_prefill(self, ids: list[int]) -> float:
        self.asked.append((len(ids), 0))
        return [9.0, 2.0, 4.0][len(self.asked) - 1]

    def time_steps(self, ids: list[int], steps: int) -> list[float]:
        self.asked.append((len(ids), steps))
        return [5.0, *[0.1] * (steps - 1)]


def test_an_engine_with_a_loop_of_its_own_is_timed_by_that() -> None:
    loop: Any = Loop()
    figures = _speed(loop, Job("speed", "it", "q", "", 1, [7, 8, 9], prefill=12, depths=(4, 8), steps=6))
    assert figures == {"prefill_12": 4.5, "decode_4": pytest.approx(10), "decode_8": pytest.approx(10)}  # of 6 and 3
    assert loop.asked == [(12, 0)] * 3 + [(4, 6), (8, 6)]


LATE = """
import sys
from pathlib import Path
from edgellm.benchmarks.peers.child import load_code

peer, variant, path = sys.argv[1:]
module = load_code(peer)
before = set(sys.modules)
module.open_engine(Path(path), variant=variant, threads=1, context=32).close()
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
"""


def imported_late(peer: str, variant: str, path: Path) -> str:
    """Modules that a load imports, although their import is timed apart from it."""
    command = [sys.executable, "-c", LATE, peer, variant, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        ("edgellm_onnx", "int8"),
        ("edgellm_tflite", "int8"),
        pytest.param("onnxruntime_genai", "int4", marks=pytest.mark.slow),
    ],
)
def test_a_load_imports_nothing(
    peer: str, variant: str, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("tiny", tiny_source, 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0]["reason"])
    assert imported_late(peer, variant, made[0].path) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "variant"), [("llama_cpp", "q8_0"), ("openvino_genai", "q8_0")])
def test_a_load_of_a_gguf_imports_nothing(
    peer: str, variant: str, models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, left_out = prepare(open_model("smollm2", models("smollm2"), 8), [EngineId(peer, variant)], lambda step: None)
    if left_out:
        pytest.skip(left_out[0]["reason"])
    assert imported_late(peer, variant, made[0].path) == "[]"


def test_only_a_gguf_is_permuted(tiny_source: Path, tmp_path: Path) -> None:
    done = command_line("--models", f"{tiny_source}-permuted", "--peers", "edgellm_onnx:int8", "--noisy", cache=tmp_path)
    assert done.returncode == 1
    assert "only GGUF sources are permuted" in done.stderr


@pytest.mark.slow
def test_a_permuted_model_is_a_model_of_the_table(models: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = ("--threads", 1, "--trials", 1, "--prefill", 16, "--depths", 4, "--steps", 2, "--positions", 60)
    wanted = ("edgellm_onnx:int4-b32", "edgellm_onnx:int8", "llama_cpp:q4_0")
    arguments = ("--peers", *wanted, *sizes, "--json", tmp_path / "out.json", "--noisy")
    source = models("smollm2")
    done = command_line("--models", source, f"{source}-permuted", *arguments, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    plain, moved = (each["name"] for each in report["models"])
    assert moved == f"{plain}-permuted"
    kl = {(each["model"], each["engine"]): each["kl"] for each in report["quality"]}
    assert 0 < kl[moved, "edgellm_onnx:int8"] < 0.02  # both are the same function, so 8 bit is close in either order
    engines = {each["engine"] for each in report["engines"]}
    assert all(abs(np.log(kl[moved, each] / kl[plain, each])) > 1e-4 for each in engines), kl


def consistent(engine: peers.Engine, ids: list[int]) -> None:
    """Prefill, steps and all positions are one model, and a reset forgets."""
    every = engine.logits(ids)
    for _ in range(2):
        engine.reset()
        first = engine.prefill(ids[:-3]).copy()
        steps = [engine.step(token).copy() for token in ids[-3:]]
        assert first.shape == every.shape[1:]
        # a pass of one token and of several round their activations differently
        assert quality.compare(every[-4:], np.stack([first, *steps])).kl < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "kind"), [("smollm2", "q4_0", "Q4_0"), ("smollm2", "q8_0", "Q8_0"), ("qwen2.5", "q4_0", "Q4_0")]
)
def test_llama_cpp(
    models: Callable[[str], Path], name: str, variant: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = open_model(name, models(name), 24)
    (made,), left_out = prepare(model, [EngineId("llama_cpp", variant)], lambda step: None)
    assert left_out == []
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(made.path).tensors}
    ends = {name: kind for name, kind in types.items() if not name.startswith("blk.") and "norm" not in name}
    assert ends == dict.fromkeys(["token_embd.weight", *["output.weight"] * (name == "qwen2.5")], "Q8_0")
    linears = {types[f"blk.{layer}.{part}.weight"] for layer in (0, 7) for part in ("attn_q", "attn_v", "ffn_down", "ffn_up")}
    assert linears == {kind}
    # the file's own weights at float32, by our reader, are what llama.cpp has to compute with
    file_logits = np.load(quality.reference(made.path, model.ids, tmp_path))
    engine = peers.peer("llama_cpp").open_engine(made.path, variant=variant, threads=2, context=64)
    assert quality.compare(file_logits, engine.logits(model.ids)).kl < 0.01
    consistent(engine, model.ids)
    engine.close()
    stamp = made.path.stat().st_mtime_ns
    prepare(model, [made.engine], lambda step: None)
    assert made.path.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_llama_cpp_without_flash_attention_is_the_same_file(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api: Any = pytest.importorskip("llama_cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    variants = ("q4_0", "q4_0-noflash")
    model = open_model("smollm2", models("smollm2"), 24)
    made, _ = prepare(model, [EngineId("llama_cpp", variant) for variant in variants], lambda step: None)
    assert len({each.path for each in made}) == 1
    module = peers.peer("llama_cpp")
    engines = [module.open_engine(made[0].path, variant=variant, threads=1, context=64) for variant in variants]
    flash, plain = (engine.logits(model.ids) for engine in engines)
    assert quality.compare(flash, plain).kl < 0.02
    assert not np.array_equal(flash, plain)  # the other sums round differently
    settings = api.llama_context_default_params()
    assert {settings.type_k, settings.type_v} == {api.GGML_TYPE_F16}
    assert {module.VARIANTS[variant].kv for variant in variants} == {"f16"}
    for engine in engines:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["int4", "int4-head8"])
def test_onnxruntime_genai(tiny_source: Path, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = open_model("tiny", tiny_source, 24)
    (made,), left_out = prepare(model, [EngineId("onnxruntime_genai", variant)], lambda step: None)
    assert left_out == []
    engine = peers.peer("onnxruntime_genai").open_engine(made.path, variant=variant, threads=1, context=64)
    found = quality.compare(np.load(model.reference), engine.logits(model.ids))
    assert found.kl < 0.5
    assert len(found.divergences) == 24
    consistent(engine, model.ids)
    engine.close()
