"""What a user asks is checked before a source is opened, and what nobody asked has its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgellm.converters import targets
from edgellm.converters.choices import Choices
from edgellm.errors import UsageError

NOTHING = dict.fromkeys(("quant", "method", "block_size", "kv", "bits_per_weight", "recipe", "calibration"))


def choices(**said: Any) -> Choices:
    return Choices.read(**{**NOTHING, "preset": "best", **said})


@pytest.mark.parametrize(
    ("said", "quant", "rounding", "mixed"),
    [
        ({}, "int4", "gptq", True),
        ({"quant": "int8"}, "int8", "rtn", False),
        ({"quant": "fp32"}, "fp32", "imatrix", False),
        ({"method": "gptq"}, "int4", "gptq", False),
        ({"method": "awq", "bits_per_weight": 5.0}, "int4", "awq", True),
        ({"block_size": 64}, "int4", "gptq", False),
        ({"block_size": 64, "bits_per_weight": 4.5}, "int4", "gptq", True),
        ({"preset": "fast"}, "int4", "rtn", False),
        ({"preset": "fast", "method": "imatrix"}, "int4", "imatrix", False),
        ({"calibration": "none"}, "int4", "rtn", False),
    ],
)
def test_defaults(said: dict[str, Any], quant: str, rounding: str, mixed: bool) -> None:
    found = choices(**said)
    assert (found.quant, found.rounding, found.wants_mixed) == (quant, rounding, mixed)


def test_a_recipe_file_says_who_gets_what(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('base = "int8"\n')
    assert choices(recipe=tmp_path / "own.toml").quant == "int8"
    assert not choices(recipe=tmp_path / "own.toml", quant="int4").wants_mixed


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant": "int3"}, "unknown quantization 'int3'"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"bits_per_weight": 5.0, "quant": "int8"}, "--bpw: a budget of bits is for int4"),
        ({"bits_per_weight": 5.0, "method": "rtn"}, "--bpw: 'rtn' has no text"),
        ({"bits_per_weight": 5.0, "preset": "fast"}, "--bpw: 'rtn' has no text"),
        ({"bits_per_weight": 5.0, "calibration": "none"}, "--bpw: 'rtn' has no text"),
        ({"calibration": "none", "method": "gptq"}, "--calibration: 'gptq' needs a text"),
        ({"calibration": "none", "kv": "int8"}, "--calibration: an 8-bit cache needs a text"),
    ],
)
def test_what_makes_no_sense(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choices(**said)


def test_a_budget_beside_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[[rule]]\ntensors = "v"\nbits = 8\n')
    with pytest.raises(UsageError, match="--bpw: a recipe file says"):
        choices(recipe=tmp_path / "own.toml", bits_per_weight=5.0)


def test_each_target_has_its_own_grid_block_and_cache() -> None:
    found = choices().recipes({name: targets.find(name) for name in ("onnx", "tflite", "tflite_compat")})
    schemes = {name: recipe.scheme("layers.3.up.weight") for name, recipe in found.items()}
    assert {name: scheme and scheme.block for name, scheme in schemes.items()} == {"onnx": 32, "tflite": 32, "tflite_compat": 0}
    assert {name: recipe.kv for name, recipe in found.items()} == {"onnx": 32, "tflite": 8, "tflite_compat": 32}
    with pytest.raises(UsageError, match="unknown cache type"):
        choices(kv="int2").recipes({"onnx": targets.find("onnx")})
