"""The permuted source: the same function, other blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from numpy.typing import NDArray

from edgellm.benchmarks import gguf_file
from edgellm.benchmarks.permuted import permuted
from edgellm.converters.architectures import describe
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.numpy_ops import ReferenceModel
from edgellm.converters.weights import Weight
from edgellm.errors import RuntimeUnavailable, SourceError
from tests.tiny_gguf import write_gguf

IDS = np.random.default_rng(9).integers(3, 131, 40)
BLOCK = 32

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with open_checkpoint(path) as checkpoint:
        spec, tensor = describe(checkpoint)
        return ReferenceModel(spec, lambda name: Weight(name, tensor(name))).logits(ids)


def tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    return {each.name: quants.dequantize(each.data, each.tensor_type).copy() for each in GGUFReader(path).tensors}


def tiny_gguf(tmp_path: Path, architecture: str = "llama", variant: str = "plain") -> Path:
    write_gguf(tmp_path / "tiny.gguf", architecture, variant)
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("architecture", "variant"),
    [
        ("llama", "plain"),
        ("llama", "one_kv_head"),
        ("llama", "biases"),
        ("llama", "llama3_rope"),
        ("qwen2", "plain"),
        ("qwen3", "plain"),
        ("gemma2", "as_published"),
        ("gemma3", "as_published"),
        ("granite", "biases"),
        ("olmo2", "plain"),
    ],
)
def test_the_function_stays(architecture: str, variant: str, tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path, architecture, variant)
    before, after = logits(source, IDS), logits(permuted(source), IDS)
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5)
    assert np.abs(after - before).max() > 0  # sums in another order round differently: it is not the same file


def test_fused_matrices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"attn_qkv\.weight: channels of this tensor are not known"):
        permuted(tiny_gguf(tmp_path, "phi3"))


def wide_gguf(tmp_path: Path, change: Callable[[str, NDArray[Any]], NDArray[Any]]) -> Path:
    """One layer of a width of several blocks: hidden 128, FFN 256, two value heads of 64 read by four query heads."""
    path = tmp_path / "wide.gguf"
    shapes = {
        "token_embd": (40, 128), "output_norm": (128,), "blk.0.attn_norm": (128,), "blk.0.ffn_norm": (128,),
        "blk.0.attn_q": (256, 128), "blk.0.attn_k": (128, 128), "blk.0.attn_v": (128, 128), "blk.0.attn_output": (128, 256),
        "blk.0.ffn_gate": (256, 128), "blk.0.ffn_up": (256, 128), "blk.0.ffn_down": (128, 256),
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(128)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    rng = np.random.default_rng(3)
    for name, shape in shapes.items():
        values = change(name, rng.normal(size=shape).astype(np.float32))
        kind = GGMLQuantizationType.Q4_1 if len(shape) == 2 else GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_block_of_inputs_holds_channels_of_others(tmp_path: Path) -> None:
    """Every input channel carries the number of its old block; a block that kept its members would hold one number."""

    def number(name: str, values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(np.arange(values.shape[-1]) // BLOCK, values.shape).astype(np.float32)

    linears = {name: values for name, values in tensors(permuted(wide_gguf(tmp_path, number))).items() if values.ndim == 2}
    assert len(linears) == 8
    for name, values in linears.items():
        blocks = np.rint(values[0]).reshape(-1, BLOCK)
        share = max(np.bincount(block.astype(int)).max() / BLOCK for block in blocks)
        assert share < 0.75, name  # a value head of 64 spans two blocks only; the others spread further
        if name not in ("blk.0.attn_output.weight",):
            assert share < 0.6, name


def rounding(values: NDArray[np.float32]) -> float:
    """Relative error of rounding to Q4_1 once more."""
    again = quants.dequantize(quants.quantize(values, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    return float(np.linalg.norm(again - values) / np.linalg.norm(values))


def test_the_free_ride_ends(tmp_path: Path) -> None:
    """Rounding to the file's own grid again costs next to nothing, and the full price once channels have moved."""
    source = wide_gguf(tmp_path, lambda name, values: values)
    before, after = tensors(source), tensors(permuted(source))
    assert before.keys() == after.keys()
    for name, values in before.items():
        if values.ndim == 2:
            assert rounding(values) < 0.001, name
            assert rounding(after[name]) > 0.05, name


def test_the_file_is_float32_and_says_so_and_keeps_the_rest(tmp_path: Path) -> None:
    source = wide_gguf(tmp_path, lambda name, values: values)
    old, new = GGUFReader(source), GGUFReader(permuted(source))
    assert {tensor.tensor_type.name for tensor in new.tensors} == {"F32"}
    kept = {name: field.contents() for name, field in old.fields.items() if not name.startswith("GGUF.")}
    found = {name: field.contents() for name, field in new.fields.items() if not name.startswith("GGUF.")}
    assert found == {**kept, "general.file_type": 0}


def test_a_seed_is_an_order_and_a_file_is_made_once(tmp_path: Path) -> None:
    source = wide_gguf(tmp_path, lambda name, values: values)
    first = permuted(source)
    content, stamp = first.read_bytes(), first.stat().st_mtime_ns
    assert permuted(source) == first
    assert first.stat().st_mtime_ns == stamp
    first.unlink()
    assert permuted(source).read_bytes() == content
    other = permuted(source, seed=1)
    assert other != first
    assert other.read_bytes() != content
    ours, theirs = tensors(first), tensors(other)
    for name in ("blk.0.ffn_gate.weight", "blk.0.attn_v.weight"):  # rows, whatever the order of their columns is
        assert not np.array_equal(np.sort(ours[name], axis=1), np.sort(theirs[name], axis=1)), name
    columns = "token_embd.weight"
    assert not np.array_equal(ours[columns], theirs[columns])


def test_another_source_of_the_same_name_is_another_file(tmp_path: Path) -> None:
    one = permuted(wide_gguf(tmp_path, lambda name, values: values))
    two = permuted(wide_gguf(tmp_path, lambda name, values: values * 2))
    assert one != two


def test_nothing_half_written_stays(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SourceError):
        permuted(tiny_gguf(tmp_path, "phi3"))
    assert [path for path in cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model" * 100])
def test_what_is_no_gguf_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(SourceError, match="not a GGUF file"):
        permuted(tmp_path / "a.gguf")
    with pytest.raises(SourceError, match="not a GGUF file"):
        permuted(tmp_path)


def test_a_missing_gguf_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RuntimeUnavailable, match="pip install gguf"):
        gguf_file.open_gguf(tmp_path / "a.gguf")


@pytest.mark.slow
def test_smollm2_stays_the_same_function(models: Callable[[str], Path]) -> None:
    source = models("smollm2")
    ids = np.random.default_rng(2).integers(0, 49152, 48)
    before, after = logits(source, ids), logits(permuted(source), ids)
    assert np.abs(after - before).max() < 1e-3 * np.abs(before).max()
    assert np.mean(after.argmax(-1) == before.argmax(-1)) == 1
