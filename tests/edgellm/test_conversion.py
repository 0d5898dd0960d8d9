"""Conversion: the bundle it makes, the memory it takes, and what it leaves when it cannot finish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import EdgeError
from edgellm.bundle import Bundle
from edgellm.conversion import Progress, convert
from edgellm.errors import BundleError, ResourceError, SourceError, UsageError
from tests import synthetic, tiny_folder

CONVERT = """
import sys
from edgellm.conversion import convert
def show(progress):
    print(progress.done, flush=True)
convert(sys.argv[1], sys.argv[2], max_ram=int(sys.argv[3]) or None, target=sys.argv[4], method=[*sys.argv, None][5],
        evaluate=False, progress=show)
"""
CONVERT_AND_WATCH = """
import re, sys, threading, time
from pathlib import Path
from edgellm.conversion import convert
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.01):
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
watcher = threading.Thread(target=watch)
watcher.start()
try:
    convert(sys.argv[1], sys.argv[2], max_ram=int(sys.argv[3]), target=sys.argv[4], method=sys.argv[5] or None, evaluate=False)
finally:
    over.set()
    watcher.join()
print(peak)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.write(tmp_path_factory.mktemp("source") / "tiny-llama")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 MB of weights: enough slices to be interrupted between two of them."""
    return synthetic.write(tmp_path_factory.mktemp("large") / "zeros", hidden=512, intermediate=2048, layers=6, vocab=8000)


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("quant", ["int4", "int8", "fp32"])
def test_the_bundle_is_whole(source: Path, tmp_path: Path, quant: str) -> None:
    seen: list[Progress] = []
    bundle = convert(source, tmp_path / "out", quant=quant, progress=seen.append)
    bundle.verify()
    assert seen[-1].done == seen[-1].total
    assert left_in(tmp_path) == ["out"]
    assert {entry.name for entry in bundle.path.iterdir()} == {"edgellm.json", *bundle.files}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "genai_config.json"} <= set(bundle.files)
    assert bundle.recipe.name == quant
    assert bundle.provenance.source == "tiny-llama"
    assert bundle.provenance.license == "mit"
    assert bundle.text.eos_ids == (2,)
    assert Bundle.open(bundle.path) == bundle


def test_what_the_authors_set_is_kept(tmp_path: Path) -> None:
    folder = tiny_folder.write(tmp_path / "tiny-llama")
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": [2, 9]}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "LICENSE").write_text("Do as you like.", encoding="utf-8")
    bundle = convert(folder, tmp_path / "out", max_context=100)
    assert bundle.generation == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    assert (bundle.text.bos_id, bundle.text.eos_ids) == (1, (2, 9))
    assert bundle.text.special_tokens == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    assert bundle.file("LICENSE").read_text(encoding="utf-8") == "Do as you like."
    assert bundle.spec.max_context == 100
    peers = json.loads(bundle.file("genai_config.json").read_text(encoding="utf-8"))
    assert peers["model"]["eos_token_id"] == [2, 9]
    assert peers["search"].items() >= {**bundle.generation, "do_sample": True, "max_length": 100}.items()


def test_two_conversions_make_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """Whatever the number of threads and the order of slices: a bundle can be reproduced and compared."""
    bundles = [convert(source, tmp_path / name) for name in ("a", "b")]
    assert bundles[0].files == bundles[1].files


def test_smaller_quantization_is_smaller(large: Path, tmp_path: Path) -> None:
    sizes = [convert(large, tmp_path / quant, quant=quant, calibration="none").size() for quant in ("int4", "int8", "fp32")]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.3 * sizes[2]


@pytest.mark.parametrize("existing", ["folder", "file", "broken link"])
def test_an_existing_target_is_left_alone(source: Path, tmp_path: Path, existing: str) -> None:
    target = tmp_path / "out"
    if existing == "folder":
        target.mkdir()
        (target / "mine").touch()
    elif existing == "file":
        target.touch()
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = left_in(tmp_path)
    with pytest.raises(BundleError, match=r"out: the target exists already; remove it"):
        convert(source, target)
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"quant": "int3"}, UsageError, "unknown quantization 'int3'; choose one of int4, int8, fp32"),
        ({"block_size": 48}, UsageError, "block size 48 is not supported"),
        ({"method": "magic"}, UsageError, "unknown method 'magic'; choose one of awq, gptq, imatrix, rtn"),
        ({"target": "coreml"}, UsageError, "unknown target 'coreml'; choose one of onnx"),
        ({"max_ram": 1 << 20}, ResourceError, "--max-ram: too little for a conversion; give at least"),
        ({"max_ram": "2G"}, UsageError, "max_ram: '2G' is not a whole number"),
        ({"max_context": 0}, EdgeError, "context"),
        ({"max_context": 100.0}, UsageError, "max_context: 100.0 is not a whole number"),
        ({"max_context": 1 << 20}, EdgeError, "context"),
    ],
)
def test_arguments_that_make_no_sense(
    source: Path, tmp_path: Path, arguments: dict[str, object], kind: type[EdgeError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        convert(source, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert left_in(tmp_path) == []


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.gguf"):
        convert(tmp_path / "nowhere.gguf", tmp_path / "out")
    assert left_in(tmp_path) == []


def test_an_unwritable_place(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot write"):
        convert(source, tmp_path / "file" / "out")


def test_an_exception_in_progress_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", progress=interrupt)
    assert left_in(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
@pytest.mark.parametrize(("runtimes", "events"), [("onnx", 1), ("onnx", 4), ("onnx", 9), ("both", 9)])
def test_a_killed_conversion_leaves_no_bundle(large: Path, tmp_path: Path, runtimes: str, events: int) -> None:
    """Killed between two slices; the next conversion clears what is left and succeeds."""
    target = tmp_path / "out"
    command = [sys.executable, "-c", CONVERT, str(large), str(target), "0", runtimes, "rtn"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(events):
            process.stdout.readline()
        process.kill()
    assert not target.exists()
    assert [name.startswith(".out.partial-") for name in left_in(tmp_path)] == [True]
    convert(large, target, method="rtn").verify()
    assert left_in(tmp_path) == ["out"]


def test_a_disk_that_is_too_small_is_said_before_the_work(large: Path, tiny_disk: Callable[[int], Path]) -> None:
    disk = tiny_disk(8)
    with pytest.raises(ResourceError, match=r"the bundle needs \d+ MB and \d+ MB are free; make room"):
        convert(large, disk / "out")
    assert left_in(disk) == []


def test_a_disk_that_fills_up_leaves_nothing(source: Path, tiny_disk: Callable[[int], Path]) -> None:
    """Somebody else writes meanwhile: it was large enough when the conversion began."""
    disk = tiny_disk(80)

    def fill(_: Progress) -> None:
        with (disk / "other").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

    with pytest.raises(ResourceError, match=r"out: the disk is full; make room"):
        convert(source, disk / "out", method="rtn", progress=fill)
    assert left_in(disk) == ["other"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads anonymous memory from /proc")
@pytest.mark.parametrize(("target", "method"), [("onnx", ""), ("both", "rtn")])  # one by default: it takes minutes
def test_a_large_model_stays_under_max_ram(target: str, method: str, tmp_path: Path) -> None:
    """4 GB of weights, 0.7 GB of them in one tensor, within 600 MB of anonymous memory."""
    source = synthetic.write(tmp_path / "zeros", hidden=2048, intermediate=8192, layers=22, vocab=180_000)
    assert (source / "model.safetensors").stat().st_size > 4_000_000_000
    limit = 600 << 20
    command = [sys.executable, "-c", CONVERT_AND_WATCH, str(source), str(tmp_path / "out"), str(limit), target, method]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < limit


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from the kernel")
def test_the_half_billion_model_takes_little_memory(models: Callable[[str], Path], tmp_path: Path) -> None:
    """The promise is 1.2 GB peak RSS, mapped source pages included; for both runtimes at once, where it is highest."""
    # not getrusage: its peak survives exec, so a child would answer for the pytest process that it was forked from
    script = CONVERT + "import re; print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    command = [sys.executable, "-c", script, str(models("qwen2.5")), str(tmp_path / "out"), "0", "both", "imatrix"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) * 1024 < 1_200_000_000


def test_the_manifest_is_json_that_people_can_read(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "edgellm.json").read_text(encoding="utf-8"))
    assert manifest["format"] == 1
    assert manifest["spec"]["architecture"] == "llama"
    assert set(manifest["files"]["model.onnx"]) == {"size", "sha256"}
