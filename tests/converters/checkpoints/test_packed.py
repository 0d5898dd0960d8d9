"""GPTQ and AWQ folders: what the words stand for, whole and in slices, and which variants are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.converters.checkpoints import open_checkpoint
from edgellm.errors import SourceError
from edgellm.scheme import Scheme
from tests import packed_folder, tiny_folder

KINDS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "group": 32},
    "gptq v2": {"method": "gptq", "group": 64, "checkpoint_format": "gptq_v2"},
    "gptq whole rows": {"method": "gptq", "group": -1, "desc_act": False},
    "gptq symmetric": {"method": "gptq", "group": 32, "symmetric": True, "sym": True},
    "gptq act-order": {"method": "gptq", "group": 32, "shuffled": True, "desc_act": True},
    "gptq wide groups": {"method": "gptq", "group": 96},
    "awq": {"method": "awq", "group": 32, "version": "gemm", "zero_point": True},
    "awq 64": {"method": "awq", "group": 64, "version": "GEMM"},
}
NAME = "model.layers.1.mlp.down_proj.weight"  # [64, 128]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder.write(tmp_path / "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_what_the_formats_say(folder: Path, kind: str) -> None:
    before = set(load_file(folder / "model.safetensors"))
    meant = packed_folder.pack(folder, **KINDS[kind])
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.names() == before
        for name, values in meant.items():
            tensor = checkpoint.tensor(name)
            assert tensor.shape == values.shape
            np.testing.assert_array_equal(tensor.array(), values)
            for start, stop in ((0, 1), (3, 21), (8, 16), (31, 32), (5, 5)):
                np.testing.assert_array_equal(tensor.rows(start, stop), values[start:stop])
        floats = checkpoint.tensor("model.embed_tokens.weight").array()
    np.testing.assert_array_equal(floats, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("kind", "holding"),
    [
        ("gptq", [Scheme(4, 32, False), Scheme(4, 16, False), Scheme(8, 32)]),
        ("gptq symmetric", [Scheme(4, 32), Scheme(4, 32, False), Scheme(8, 16)]),
        ("gptq whole rows", [Scheme(4, 128, False), Scheme(4, 0, False), Scheme(4, 64, False)]),
        ("awq 64", [Scheme(4, 64, False), Scheme(4, 16, False), Scheme(8, 64)]),
        ("gptq act-order", []),
        ("gptq wide groups", []),  # 128 inputs are a group of 96 and a third of one
    ],
)
def test_codes_are_there_for_the_grids_that_hold_them_and_no_others(folder: Path, kind: str, holding: list[Scheme]) -> None:
    values = packed_folder.pack(folder, **KINDS[kind])[NAME]
    all_schemes = [Scheme(bits, block, symmetric) for bits in (4, 8) for block in (0, 16, 32, 64, 128) for symmetric in (0, 1)]
    with open_checkpoint(folder) as checkpoint:
        tensor = checkpoint.tensor(NAME)
        found = [scheme for scheme in all_schemes if tensor.on_grid(scheme, 0, 0) is not None]
        assert all(scheme in found for scheme in holding)
        assert bool(found) == bool(holding)
        for scheme in found:
            for start, stop in ((0, 64), (3, 21)):
                part = tensor.on_grid(scheme, start, stop)
                assert part is not None
                assert part.scheme == scheme
                assert part.codes.min() >= scheme.low
                assert part.codes.max() <= scheme.high
                np.testing.assert_array_equal(part.dequantize(), values[start:stop])
        assert tensor.on_grid(Scheme(4, 32, scales="positive bfloat16"), 0, 0) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "gptq", "bits": 8}, r"quantized by GPTQ with 8 bits, which is not read; convert from the original"),
        ({"method": "gptq", "checkpoint_format": "marlin"}, "GPTQ in the format 'marlin'"),
        ({"method": "gptq", "is_marlin_format": True}, "GPTQ in the format"),
        ({"method": "gptq", "group_size": 0}, "GPTQ in groups of 0"),
        ({"method": "gptq", "group_size": "32"}, "GPTQ in groups of 32"),
        ({"method": "awq", "version": "gemv"}, "AWQ in the version 'gemv'"),
        ({"method": "awq", "bits": 3}, "AWQ with 3 bits"),
    ],
)
def test_other_variants_are_refused(folder: Path, settings: dict[str, Any], words: str) -> None:
    method = settings.pop("method")
    packed_folder.pack(folder, method, 32, **settings)
    with pytest.raises(SourceError, match=words):
        open_checkpoint(folder)


def test_old_names_of_awqs_settings_are_known(folder: Path) -> None:
    meant = packed_folder.pack(folder, "awq", 32)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "w_bit": 4, "q_group_size": 32}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor(NAME).array(), meant[NAME])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"scales": None}, "it has no scales"),
        ({"qzeros": None}, "it has no qzeros"),
        ({"scales": np.ones((3, 64), np.float16)}, r"scales is \[3, 64\], not \[4, 64\]"),
        ({"qzeros": np.zeros((4, 7), np.int32)}, r"qzeros is \[4, 7\], not \[4, 8\]"),
        ({"qweight": np.zeros(16, np.int32)}, "qweight is no matrix"),
        ({"qweight": np.zeros((0, 64), np.int32)}, "it is empty"),
        ({"g_idx": np.zeros(5, np.int32)}, r"g_idx is \[5\], not \[128\]"),
        ({"g_idx": np.full(128, 4, np.int32)}, "g_idx names a group past 3"),
        ({"g_idx": np.full(128, -1, np.int32)}, "g_idx names a group past 3"),
        ({"qweight": np.zeros((16, 64), np.float32)}, "qweight is stored as F32"),
        ({"scales": np.zeros((4, 64), np.int32)}, "scales is stored as I32"),
        ({"scales": np.zeros((4, 64), np.int8)}, "stored as I8"),
    ],
)
def test_damage_is_named(folder: Path, damage: dict[str, Any], words: str) -> None:
    packed_folder.pack(folder, "gptq", 32)
    file = folder / "model.safetensors"
    tensors: dict[str, Any] = load_file(file)
    for part, values in damage.items():
        del tensors[NAME.replace("weight", part)]
        if values is not None:
            tensors[NAME.replace("weight", part)] = values
    save_file(tensors, file)
    with pytest.raises(SourceError, match=rf"model\.layers\.1\.mlp\.down_proj.*{words}"), open_checkpoint(folder) as checkpoint:
        checkpoint.tensor(NAME).array()
