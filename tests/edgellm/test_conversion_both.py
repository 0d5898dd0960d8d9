"""`target="both"`: one bundle with the two graphs that two conversions would make, from one reading of the source."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors
import torch
import transformers

import edgellm
from edgellm import conversion, partial
from edgellm.bundle import Bundle
from edgellm.conversion import Progress, convert
from edgellm.converters.checkpoints.gguf import _GGUFTensor
from edgellm.converters.checkpoints.safetensors import _Tensor
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import ResourceError, SourceError, UsageError
from edgellm.runtimes import memory
from tests import synthetic, tiny_folder

GRAPH_FILES = {"onnx": ("model.onnx", "model.onnx.data"), "tflite": ("model.tflite",)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.write(tmp_path_factory.mktemp("source") / "tiny-llama")


@pytest.mark.parametrize(("quant", "kv"), [("int4", "fp32"), ("int4", "int8"), ("int8", "fp32"), ("fp32", "fp32")])
def test_the_graphs_are_those_of_two_conversions(source: Path, tmp_path: Path, quant: str, kv: str) -> None:
    """Byte for byte, each with its own grids, beside one tokenizer."""
    both = convert(source, tmp_path / "both", target="both", quant=quant, kv=kv)
    both.verify()
    assert list(both.graphs) == ["onnx", "tflite"]
    kinds = {layout.dtype for graph in both.graphs.values() for layout in graph.kv}
    assert kinds == {"int8" if kv == "int8" else "float32"}
    for target, files in GRAPH_FILES.items():
        alone = convert(source, tmp_path / target, target=target, quant=quant, kv=kv)
        same = {name: entry for name, entry in alone.files.items() if name != "FIDELITY.md"}
        assert both.files.items() >= same.items(), "the shared files too"
        assert both.files_of(both.graphs[target]) == alone.files_of(alone.graphs[target]) == files
        assert both.recipe_of(both.graphs[target]) == alone.recipe_of(alone.graphs[target]) == alone.recipe
        assert memory.weight_bytes(both, both.graphs[target]) == sum(both.files[name].size for name in files)
    texts = 4 if kv == "int8" else 5  # onnxruntime-genai takes no 8-bit cache, so there is no configuration for it
    assert len(both.files) == len({name for files in GRAPH_FILES.values() for name in files}) + texts
    assert both.recipe == both.recipe_of(both.graphs["onnx"])
    grids_differ = quant != "fp32"
    assert (both.recipe != both.recipe_of(both.graphs["tflite"])) is grids_differ
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["both", "onnx", "tflite"]


def test_both_graphs_say_what_transformers_says(source: Path, tmp_path: Path) -> None:
    bundle = convert(source, tmp_path / "both", target="both", quant="fp32")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    for runtime in ("onnx", "tflite"):
        with edgellm.load(bundle.path, runtime=runtime) as llm:
            assert llm.runtime.name == runtime
            ids = llm.tokenizer.encode("One tokenizer")
            expected = model(torch.tensor([ids])).logits[0].detach().numpy()
            np.testing.assert_allclose(llm.session().logits(ids), expected, atol=1e-4)


def counted(monkeypatch: pytest.MonkeyPatch, kind: type[Any], place: Callable[[Any], int]) -> Counter[tuple[int, int]]:
    """How often each row was read that the source has, by the tensor's place in the file and the row."""
    reads: Counter[tuple[int, int]] = Counter()
    rows, lock = kind.rows, threading.Lock()

    def counting(self: LazyTensor, start: int, stop: int) -> Array:
        with lock:
            reads.update((place(self), row) for row in range(start, stop))
        values: Array = rows(self, start, stop)
        return values

    monkeypatch.setattr(kind, "rows", counting)
    return reads


@pytest.mark.parametrize("slice_bytes", [1000, conversion.DEFAULT_SLICE])
def test_every_row_of_the_source_is_read_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    monkeypatch.setattr(conversion, "DEFAULT_SLICE", slice_bytes)
    reads = counted(monkeypatch, _Tensor, lambda tensor: tensor._info.begin)
    convert(source, tmp_path / "both", target="both", method="rtn", kv="fp32")  # a calibration reads it once before
    with safetensors.safe_open(source / "model.safetensors", "numpy") as file:
        rows = sum(file.get_slice(name).get_shape()[0] for name in file.keys())  # noqa: SIM118 - it is no mapping
    assert len(reads) == rows
    assert set(reads.values()) == {1}


@pytest.mark.slow
def test_every_row_of_a_real_gguf_is_read_once(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted(monkeypatch, _GGUFTensor, lambda tensor: tensor._info.start)
    convert(models("smollm2"), tmp_path / "both", target="both", method="rtn", kv="fp32")
    tensors = gguf.GGUFReader(models("smollm2")).tensors
    assert len(reads) == sum(int(tensor.shape[-1]) for tensor in tensors)
    assert set(reads.values()) == {1}


def test_progress_counts_the_source_once(source: Path, tmp_path: Path) -> None:
    seen: dict[str, list[Progress]] = {"onnx": [], "both": []}
    for target, progress in seen.items():
        convert(source, tmp_path / target, target=target, method="rtn", kv="fp32", progress=progress.append)
        assert [each.done for each in progress] == sorted({each.done for each in progress})
        assert progress[-1].done == progress[-1].total
    assert seen["both"][-1].total == seen["onnx"][-1].total


def test_a_bundle_with_one_graph_says_its_recipe_once(source: Path, tmp_path: Path) -> None:
    """As before there were two: what reads the bundle's recipe reads the graph's."""
    for target in ("onnx", "tflite"):
        bundle = convert(source, tmp_path / target, target=target)
        assert bundle.graphs[target].recipe is None
        assert bundle.recipe_of(bundle.graphs[target]) is bundle.recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"block_size": 0}, "block size 0 is not supported"),
        ({"block_size": 16}, "cannot have 4 bits in blocks of 16; use --block-size 32"),
        ({"target": "neither"}, "unknown target 'neither'; choose one of onnx, .*, both"),
    ],
)
def test_what_one_of_them_cannot_do_makes_no_bundle(
    source: Path, tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        convert(source, tmp_path / "out", **{"target": "both", **arguments})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_damaged_leaves_nothing(tmp_path: Path) -> None:
    folder = tiny_folder.write(tmp_path / "source")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-4:] = np.float32(np.nan).tobytes()
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(SourceError, match="not finite"):
        convert(folder, tmp_path / "out", target="both")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_interrupted_it_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", target="both", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_has_to_hold_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which one graph would just fit."""
    source = synthetic.write(tmp_path / "zeros", hidden=512, intermediate=2048, layers=6, vocab=8000)
    one = convert(source, tmp_path / "one", target="onnx")
    free = one.files["model.onnx.data"].size + (64 << 20) + 1000
    usage = partial.shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda path: usage)
    convert(source, tmp_path / "again", target="onnx")
    with pytest.raises(ResourceError, match=r"the bundle needs \d+ MB and \d+ MB are free"):
        convert(source, tmp_path / "both", target="both")
    assert not (tmp_path / "both").exists()


def test_the_manifest_says_which_grid_each_graph_has(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", target="both", method="imatrix")
    manifest = json.loads((tmp_path / "out" / "edgellm.json").read_text(encoding="utf-8"))
    assert manifest["format"] == 1
    assert manifest["graphs"]["onnx"]["recipe"] is None
    (scheme,) = {
        json.dumps(rule["scheme"]) for rule in manifest["graphs"]["tflite"]["recipe"]["rules"] if ".q." in rule["pattern"]
    }
    assert json.loads(scheme) == {
        "bits": 4,
        "block": 32,
        "symmetric": True,
        "scales": "positive bfloat16",
        "narrow_range": False,
    }
    assert Bundle.open(tmp_path / "out").recipe.scheme("layers.0.q.weight").symmetric is False  # type: ignore[union-attr]


def test_only_what_was_calibrated_says_so(source: Path, tmp_path: Path) -> None:
    """int8 that nobody smooths has in onnx neither searched scales nor an 8-bit cache: its recipe is as if it were alone."""
    both = convert(source, tmp_path / "both", target="both", quant="int8", preset="fast")
    for name, graph in both.graphs.items():
        alone = convert(source, tmp_path / name, target=name, quant="int8", preset="fast")
        assert both.recipe_of(graph) == alone.recipe
    assert both.recipe_of(both.graphs["onnx"]).calibration is None
    assert both.recipe_of(both.graphs["tflite"]).calibration is not None
