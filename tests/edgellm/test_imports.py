"""Sources that are quantized already: what is written stands for exactly what the source does, and the card says so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.converters.quantizers import rtn
from edgellm.converters.recipes import METHODS, matrices
from edgellm.errors import SourceError
from edgellm.scheme import IMPORTED, Scheme
from tests import onnx_weights, packed_folder, tiny_folder

Values = NDArray[np.float32]
PACKED: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "group": 32},
    "gptq v2 in groups of 64": {"method": "gptq", "group": 64, "checkpoint_format": "gptq_v2"},
    "gptq symmetric": {"method": "gptq", "group": 32, "symmetric": True},
    "gptq whole rows": {"method": "gptq", "group": -1},
    "awq": {"method": "awq", "group": 32},
}


def canonical(name: str) -> str:
    """The name in a bundle of a llama's linear in a Hugging Face folder."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)_proj\.weight", name)
    return name if match is None else f"layers.{match[1]}.{match[2]}.weight"


def packed(path: Path, **kind: Any) -> tuple[Path, dict[str, Values]]:
    """A folder, and what its linears stand for by canonical name."""
    folder = tiny_folder.write(path)
    meant = packed_folder.pack(folder, **kind)
    return folder, {canonical(name): values for name, values in meant.items()}


def assert_exact(bundle: Bundle, meant: dict[str, Values]) -> int:
    """Every one of these weights is in the graph, bit for bit; gives how many matrices there are."""
    written, seen = onnx_weights.read(bundle.path), set()
    for name, values in written.items():
        parts = name.split("+")
        if meant.keys() >= set(parts):
            np.testing.assert_array_equal(values, np.concatenate([meant[part] for part in parts]))
            seen |= set(parts)
    assert seen == set(meant)
    return len(written)


def methods(bundle: Bundle) -> dict[str, str | None]:
    return {name: rule.method for name in matrices(bundle.spec) if (rule := bundle.recipe.rule(name))}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_linears_are_carried_over_bit_by_bit(kind: str, tmp_path: Path) -> None:
    folder, meant = packed(tmp_path / "source", **PACKED[kind])
    bundle = convert(folder, tmp_path / "out")
    assert assert_exact(bundle, meant) == 2 * 4 + 2, "q, k, v are one product, gate and up another"
    assert {name for name, method in methods(bundle).items() if method == IMPORTED} == set(meant)
    assert bundle.recipe.calibration is None, "nothing was left to weigh"
    wanted = {"gptq whole rows": 64, "gptq v2 in groups of 64": 64}.get(kind, 32)
    assert bundle.recipe.scheme("layers.0.q.weight") == Scheme(4, wanted, symmetric=kind == "gptq symmetric")
    assert Bundle.open(bundle.path) == bundle


def test_finer_blocks_and_more_bits_hold_the_codes_too(tmp_path: Path) -> None:
    folder, meant = packed(tmp_path / "source", method="gptq", group=64)
    for number, arguments in enumerate(({"block_size": 16}, {"quant": "int8"}, {"quant": "int8", "block_size": 32})):
        bundle = convert(folder, tmp_path / str(number), **arguments)
        assert_exact(bundle, meant)
    for number, block in enumerate((128, 64)):
        bundle = convert(folder, tmp_path / f"block {number}", block_size=block)
        down = bundle.recipe.rule("layers.0.down.weight")
        assert down is not None
        assert (down.method == IMPORTED) == (block == 64)


def test_act_order_is_rounded_anew(tmp_path: Path) -> None:
    """Its groups lie apart: values are near to the source's, and nothing claims to be exact."""
    folder, meant = packed(tmp_path / "source", method="gptq", group=32, shuffled=True)
    bundle = convert(folder, tmp_path / "out")
    assert set(methods(bundle).values()) == {None}
    assert bundle.recipe.method == METHODS["int4"]
    assert bundle.recipe.calibration is not None
    plain = convert(folder, tmp_path / "plain", calibration="none")  # rtn, and in no other basis
    assert set(methods(plain).values()) == {None}
    written, wanted = onnx_weights.read(plain.path)["layers.0.down.weight"], meant["layers.0.down.weight"]
    assert 0 < np.abs(written - wanted).mean() < 0.2 * np.abs(wanted).mean()


@pytest.mark.parametrize("method", ["rtn", "imatrix"])
def test_a_method_by_name_rounds_anew(method: str, tmp_path: Path) -> None:
    folder, meant = packed(tmp_path / "source", method="awq", group=32)
    bundle = convert(folder, tmp_path / "out", method=method)
    assert bundle.recipe.method == method
    assert set(methods(bundle).values()) == {None}
    written = onnx_weights.read(bundle.path)["layers.0.down.weight"]
    assert not np.array_equal(written, meant["layers.0.down.weight"])


def test_tflite_has_no_grid_for_them_and_both_graphs_say_what_they_are(tmp_path: Path) -> None:
    folder, meant = packed(tmp_path / "source", method="gptq", group=32, symmetric=True)
    bundle = convert(folder, tmp_path / "out", target="both")
    assert_exact(bundle, meant)
    assert bundle.recipe.rule("layers.0.q.weight") is not None
    recipe = bundle.recipe_of(bundle.graphs["tflite"])
    assert {rule.method for rule in recipe.rules} == {None}
    assert recipe.method != IMPORTED


def test_what_a_lora_changed_is_rounded_anew(tmp_path: Path) -> None:
    """The codes are the base's; the sum lies on no grid."""
    folder, meant = packed(tmp_path / "source", method="gptq", group=32)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    rng, stem = np.random.default_rng(0), "base_model.model.model.layers.0.self_attn.v_proj"
    a, b = (rng.standard_normal(shape).astype(np.float32) * 0.3 for shape in ((2, 64), (32, 2)))
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    bundle = convert(folder, tmp_path / "out", adapter=adapter)
    changed = "layers.0.v.weight"
    assert {name for name, method in methods(bundle).items() if method == IMPORTED} == set(meant) - {changed}
    written = onnx_weights.read(bundle.path)["layers.0.q.weight+layers.0.k.weight+layers.0.v.weight"]
    wanted = meant[changed] + 2 * b @ a
    np.testing.assert_array_equal(written[:64], meant["layers.0.q.weight"])
    assert np.abs(written[96:] - wanted).mean() < 0.2 * np.abs(wanted - meant[changed]).mean()


def test_a_scale_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder, _ = packed(tmp_path / "source", method="awq", group=32)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"][1, 5] = np.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SourceError, match=r"layers\.1\..*up\.weight: the weight is not finite"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rule", "block_size", "wanted"),
    [
        ("", None, (Scheme(8, 64), IMPORTED)),
        ("", 128, (Scheme(8, 128), None)),
        ("block = 32", None, (Scheme(8, 32), IMPORTED)),
        ("block = 128", None, (Scheme(8, 128), None)),
        ("block = 64", 128, (Scheme(8, 64), IMPORTED)),
    ],
)
def test_a_recipe_is_met_before_codes_are_carried_over(
    rule: str, block_size: int | None, wanted: tuple[Scheme, str | None], tmp_path: Path
) -> None:
    folder, meant = packed(tmp_path / "source", method="gptq", group=64)
    (tmp_path / "r.toml").write_text(f'[[rule]]\ntensors = "down"\nbits = 8\n{rule}\n', encoding="utf-8")
    bundle = convert(folder, tmp_path / "out", block_size=block_size, recipe=tmp_path / "r.toml")
    found = bundle.recipe.rule("layers.1.down.weight")
    assert found is not None
    assert (found.scheme, found.method) == wanted
    written = onnx_weights.read(bundle.path)["layers.1.down.weight"]
    assert np.array_equal(written, meant["layers.1.down.weight"]) == (found.method == IMPORTED)


@pytest.mark.parametrize("arguments", [{"calibration": "none"}, {"preset": "fast"}])
def test_what_only_spares_a_text_carries_codes_over_all_the_same(arguments: dict[str, Any], tmp_path: Path) -> None:
    folder, meant = packed(tmp_path / "source", method="awq", group=32)
    bundle = convert(folder, tmp_path / "out", **arguments)
    assert_exact(bundle, meant)
    assert bundle.recipe.method == "rtn", "the tables'"


@pytest.mark.parametrize("method", [None, "rtn", "gptq"])
def test_a_few_tensors_of_a_float_model_are_rounded_as_the_card_says(method: str | None, tmp_path: Path) -> None:
    folder, meant = packed(tmp_path / "source", method="gptq", group=32)
    (tmp_path / "r.toml").write_text('base = "fp32"\n[[rule]]\ntensors = "v"\nbits = 4\n', encoding="utf-8")
    bundle = convert(folder, tmp_path / "out", method=method, recipe=tmp_path / "r.toml")
    values = {"layers.0.v.weight", "layers.1.v.weight"}
    assert set(onnx_weights.read(bundle.path)) == set(methods(bundle)) == values
    if method is None:
        assert bundle.recipe.method == IMPORTED
        assert_exact(bundle, {name: meant[name] for name in values})
        return
    assert bundle.recipe.method == method
    same = rtn.quantize(meant["layers.1.v.weight"], Scheme(4, 32, symmetric=False)).dequantize()
    assert np.allclose(onnx_weights.read(bundle.path)["layers.1.v.weight"], same, atol=1e-6) == (method == "rtn")
