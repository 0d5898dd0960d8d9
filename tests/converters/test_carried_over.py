"""GGUF files on ggml's grids: MatMulNBits gets the file's own codes, through every change of rows on the way."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.benchmarks import gguf_file
from edgellm.converters import targets
from edgellm.converters.architectures import describe
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.onnx import export
from edgellm.converters.quantizers import imatrix
from edgellm.converters.recipes import Want, carried_over, matrices, recipe, refined
from edgellm.scheme import IMPORTED, Recipe, Scheme
from tests import onnx_weights
from tests.tiny_gguf import write_gguf

Values = NDArray[np.float32]
LAYER = {
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
HEADS = {"q": 4, "k": 2}


def quantized(folder: Path, architecture: str, variant: str, linears: str, tables: str) -> Path:
    """A tiny model's GGUF file with its linears and tables in these types, by gguf-py."""
    write_gguf(folder / "float.gguf", architecture, variant)
    kinds = {"token_embd.weight": tables, "output.weight": tables}
    gguf_file.rewrite(
        folder / "float.gguf",
        folder / "file.gguf",
        kind=lambda name, shape: kinds.get(name, linears) if len(shape) == 2 else "F32",
        file_type="F32",
    )
    return folder / "file.gguf"


def meant(path: Path, *, permuted: bool) -> dict[str, Values]:
    """gguf-py's values by canonical name; rows of q and k as transformers has them."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        parts = tensor.name.split(".")
        if parts[0] == "blk" and parts[2] in LAYER and parts[3] == "weight":
            part = LAYER[parts[2]]
            if permuted and part in HEADS:
                heads, d = HEADS[part], values.shape[0] // HEADS[part]
                order = [h * d + 2 * i + half for h in range(heads) for half in (0, 1) for i in range(d // 2)]
                values = values[order]
            found[f"layers.{parts[1]}.{part}.weight"] = values
        elif parts[0] in ("token_embd", "output"):
            found[{"token_embd": "embed.weight", "output": "head.weight"}[parts[0]]] = values
    return found


def exported(path: Path, folder: Path, base: Recipe, asked: tuple[str, ...] = ()) -> tuple[Recipe, dict[str, Values]]:
    """The recipe that it becomes, and what the written graph's weights stand for."""
    with open_checkpoint(path) as checkpoint:
        spec, tensors = describe(checkpoint)
        chosen = carried_over(base, matrices(spec), tensors, export.grid, export.BLOCKS, asked)
        plan = export.plan(spec, tensors, chosen)
        targets.write([plan], folder, imatrix.quantize, slice_bytes=3000, workers=2, on_bytes=lambda name, count: None)
    return chosen, onnx_weights.read(folder)


def assert_same(written: dict[str, Values], wanted: dict[str, Values], names: set[str]) -> None:
    seen: set[str] = set()
    for name, values in written.items():
        start = 0
        for part in name.split("+"):
            stop = start + len(wanted[part])
            if part in names:
                np.testing.assert_array_equal(values[start:stop], wanted[part], err_msg=part)
                seen.add(part)
            start = stop
        assert start == len(values)
    assert seen == names


@pytest.mark.parametrize(
    ("architecture", "variant", "permuted"),
    [("llama", "plain", True), ("qwen2", "plain", False), ("gemma3", "plain", False), ("phi3", "plain", False)],
)
@pytest.mark.parametrize(("quant", "linears"), [("int4", "Q4_0"), ("int8", "Q8_0"), ("int8", "Q4_0")])
def test_every_weight_is_the_files_own(
    architecture: str, variant: str, permuted: bool, quant: str, linears: str, tmp_path: Path
) -> None:
    path = quantized(tmp_path, architecture, variant, linears, "Q8_0")
    chosen, written = exported(path, tmp_path, recipe(quant, None, 32, export.grid))
    if architecture == "phi3":  # fused in the file
        with open_checkpoint(path) as checkpoint:
            spec, tensors = describe(checkpoint)
            wanted = {name: tensors(name).array() for name in matrices(spec)}
    else:
        wanted = meant(path, permuted=permuted)
    assert_same(written, wanted, set(wanted))
    assert chosen.method == IMPORTED
    assert {rule.method for rule in chosen.rules} == {IMPORTED}
    assert chosen.scheme("layers.0.q.weight") == Scheme(4 if quant == "int4" else 8, 32), "no zero points"
    assert chosen.scheme("embed.weight") == Scheme(8, 32)


def test_a_factor_goes_into_the_scales(tmp_path: Path) -> None:
    """Granite's residual multiplier, 0.3, in o and down: the file's codes, and floats that differ by their last bit at most."""
    path = quantized(tmp_path, "granite", "plain", "Q4_0", "Q8_0")
    chosen, written = exported(path, tmp_path, recipe("int4", None, 32, export.grid))
    wanted = meant(path, permuted=True)
    assert chosen.method == IMPORTED
    for part in ("o", "down"):
        name = f"layers.1.{part}.weight"
        np.testing.assert_allclose(written[name], wanted[name].astype(np.float64) * 0.3, rtol=2e-7)


@pytest.mark.parametrize("linears", ["Q4_1", "Q5_0", "F16"])
def test_other_types_are_rounded(linears: str, tmp_path: Path) -> None:
    """Q4_1's minimum is a float: MatMulNBits would take it, and leave its fast kernel."""
    path = quantized(tmp_path, "llama", "plain", linears, "Q8_0")
    chosen, written = exported(path, tmp_path, recipe("int4", None, 32, export.grid))
    assert chosen == recipe("int4", None, 32, export.grid), "nor are the tables' blocks the file's then"
    wanted = meant(path, permuted=True)["layers.0.down.weight"]
    off = np.abs(written["layers.0.down.weight"] - wanted).mean()
    assert 0 < off < 0.2 * np.abs(wanted).mean()


def test_q8_0_linears_under_int4_are_rounded_as_usual(tmp_path: Path) -> None:
    path = quantized(tmp_path, "llama", "plain", "Q8_0", "Q8_0")
    chosen, _ = exported(path, tmp_path, recipe("int4", None, 32, export.grid))
    assert chosen.scheme("layers.0.q.weight") == export.grid(4, 32)
    assert {rule.method for rule in chosen.rules if rule.pattern.startswith("layers")} == {None}


def test_a_block_that_somebody_asked_for_goes_before_the_sources(tmp_path: Path) -> None:
    path = quantized(tmp_path, "llama", "plain", "Q4_0", "Q8_0")
    with open_checkpoint(path) as checkpoint:
        names = matrices(describe(checkpoint)[0])
    for block, is_exact in ((16, True), (32, True), (64, False)):
        folder = tmp_path / str(block)
        folder.mkdir()
        chosen, written = exported(path, folder, recipe("int4", None, block, export.grid), names)
        rule = chosen.rule("layers.0.down.weight")
        assert rule is not None
        assert (rule.method == IMPORTED) == is_exact
        assert rule.scheme is not None
        assert rule.scheme.block == block
        wanted = meant(path, permuted=True)["layers.0.down.weight"]
        assert np.array_equal(written["layers.0.down.weight"], wanted) == is_exact


def test_fused_products_lose_their_zero_points_together(tmp_path: Path) -> None:
    """One rounded part keeps those of its product, so that it stays one; a part of other bits is apart and does not count."""
    write_gguf(tmp_path / "float.gguf", "llama", "plain")

    def kind(name: str, shape: tuple[int, ...]) -> str:
        floats = len(shape) == 1 or name in ("blk.0.attn_v.weight", "blk.1.ffn_up.weight")
        return "F32" if floats else "Q8_0" if name in ("token_embd.weight", "output.weight") else "Q4_0"

    path = tmp_path / "file.gguf"
    gguf_file.rewrite(tmp_path / "float.gguf", path, kind=kind)
    base = recipe("int4", None, 32, export.grid)
    with open_checkpoint(path) as checkpoint:
        names = matrices(describe(checkpoint)[0])
    base = refined(base, names, {"layers.2.v.weight": Want(8)}, export.grid, 32)
    chosen, written = exported(path, tmp_path, base)
    symmetric = {name: chosen.scheme(name).symmetric for name in names if name.startswith("layers")}  # type: ignore[union-attr]
    asymmetric = {"layers.0.q.weight", "layers.0.k.weight", "layers.0.v.weight", "layers.1.gate.weight", "layers.1.up.weight"}
    assert {name for name, value in symmetric.items() if not value} == asymmetric
    assert "layers.0.q.weight+layers.0.k.weight+layers.0.v.weight" in written
    assert "layers.1.gate.weight+layers.1.up.weight" in written
    assert "layers.2.q.weight+layers.2.k.weight" in written, "v is apart, q and k are not"
    wanted = meant(path, permuted=True)
    tables = {"embed.weight", "head.weight"}  # beside rounded linears their blocks stay those of the level
    assert_same(written, wanted, set(wanted) - {"layers.0.v.weight", "layers.1.up.weight"} - tables)
    assert {chosen.scheme(name) for name in tables} == {Scheme(8, 64)}
