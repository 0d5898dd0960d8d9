"""Dequantization against gguf-py's, bit for bit: same layouts, same order of float operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, quants
from numpy.typing import NDArray

from edgellm.converters.checkpoints import ggml
from edgellm.converters.checkpoints.gguf import open_checkpoint

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

READ = [form for form in ggml.FORMATS.values() if form.decode is not None]
BLOCKED = [form for form in READ if form.block > 1]
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

# Byte offsets of the float16 values in a block.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}
# MXFP4's scale is the exponent of a power of two in its first byte: from here on, products overflow.
MXFP4_LARGEST = 252


def by_name(form: ggml.Format) -> str:
    return form.name


def random_blocks(form: ggml.Format, count: int, seed: int = 0) -> Bytes:
    """Random bytes whose scales are finite: normal, subnormal, zero and negative ones."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, form.size), dtype=np.uint8)
    for at in HALVES[form.name]:
        scales = rng.integers(0, 0x7C00, count, dtype=np.uint16) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
        scales[:4] = [0x0000, 0x8000, 0x0001, 0x83FF]
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    if form.name == "MXFP4":
        blocks[:, 0] %= MXFP4_LARGEST
    return blocks


def decoded(form: ggml.Format, data: Bytes) -> Floats:
    out = np.full(data.size // form.size * form.block, np.nan, np.float32)
    ggml.dequantize(form, data.reshape(-1), out)
    return out


def assert_same_bits(ours: Floats, theirs: Floats) -> None:
    np.testing.assert_array_equal(ours.view(np.uint32), np.ascontiguousarray(theirs).reshape(-1).view(np.uint32))


def test_names_and_sizes_are_ggmls() -> None:
    for code, form in ggml.FORMATS.items():
        kind = GGMLQuantizationType(code)
        assert (form.code, form.name, form.block, form.size) == (code, kind.name, *GGML_QUANT_SIZES[kind])


def test_the_promised_formats_are_read() -> None:
    promised = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"}
    promised |= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    assert promised <= {form.name for form in READ}


@pytest.mark.parametrize("form", BLOCKED, ids=by_name)
def test_random_blocks(form: ggml.Format) -> None:
    """More than two slabs, the last one not full."""
    blocks = random_blocks(form, 2 * ggml.SLAB // form.block + 3)
    expected = quants.dequantize(blocks, GGMLQuantizationType(form.code))
    assert np.isfinite(expected).all()
    assert_same_bits(decoded(form, blocks), expected)


@pytest.mark.parametrize("form", BLOCKED, ids=by_name)
def test_every_byte_value_at_every_place(form: ggml.Format) -> None:
    """Each byte of a block runs through all its values, scales apart, while the others stand still."""
    blocks = np.repeat(random_blocks(form, 5, seed=1)[4:], 256 * form.size, axis=0)
    for place in range(form.size):
        if not any(at <= place < at + 2 for at in HALVES[form.name]):
            blocks[256 * place : 256 * (place + 1), place] = np.arange(256)
    if form.name == "MXFP4":
        blocks[:, 0] %= MXFP4_LARGEST
    assert_same_bits(decoded(form, blocks), quants.dequantize(blocks, GGMLQuantizationType(form.code)))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_all_16_bit_floats(name: str) -> None:
    """All 65,536 of them; a NaN stays a NaN, whatever its payload."""
    kind = GGMLQuantizationType[name]
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    ours, theirs = decoded(ggml.FORMATS[kind], data), quants.dequantize(data, kind).reshape(-1)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert_same_bits(np.nan_to_num(ours, nan=0.5), np.nan_to_num(theirs, nan=0.5))


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_numbers(name: str) -> None:
    form = ggml.FORMATS[GGMLQuantizationType[name]]
    numbers = np.random.default_rng(2).normal(0, 100, ggml.SLAB + 5).astype(PLAIN[name])
    assert_same_bits(decoded(form, numbers.view(np.uint8)), numbers.astype(np.float32))


@pytest.mark.parametrize("form", READ, ids=by_name)
def test_unaligned_read_only_input(form: ggml.Format) -> None:
    """As tensors lie in a mapped file whose general.alignment is 1."""
    rng = np.random.default_rng(3)
    data = random_blocks(form, 5).tobytes() if form.block > 1 else rng.integers(0, 128, 5 * form.size, np.uint8).tobytes()
    unaligned = np.frombuffer(b"\0" + data, np.uint8)[1:]
    assert_same_bits(decoded(form, unaligned), decoded(form, np.frombuffer(bytearray(data), np.uint8)))


@pytest.mark.parametrize("form", [form for form in BLOCKED if HALVES[form.name]], ids=by_name)
def test_scales_that_are_not_finite_pass_silently(form: ggml.Format) -> None:
    """Infinity times zero is no reason to warn (warnings are errors here), let alone to crash."""
    blocks = random_blocks(form, 8, seed=4)
    for at in HALVES[form.name]:
        blocks[:, at : at + 2] = np.tile(np.array([0x7C00, 0xFC00, 0x7E00, 0x7BFF], "<u2"), 2)[:, None].view(np.uint8)
    ours = decoded(form, blocks)
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(blocks, GGMLQuantizationType(form.code)).reshape(-1)
    np.testing.assert_array_equal(ours, theirs)  # NaN equals NaN here
    assert not np.isfinite(ours).all()


def test_a_format_without_a_decoder_is_refused() -> None:
    form = ggml.FORMATS[GGMLQuantizationType.IQ2_XXS]
    with pytest.raises(ValueError, match="IQ2_XXS"):
        ggml.dequantize(form, np.zeros(form.size, np.uint8), np.zeros(form.block, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])  # between them, every format of the real files we have
def test_real_tensors(model: str, models: Callable[[str], Path]) -> None:
    """Every tensor of a real file, some rows from its middle (gguf-py takes long for whole ones)."""
    path = models(model)
    with open_checkpoint(path) as checkpoint:
        tensors = GGUFReader(path).tensors
        assert checkpoint.names() == {theirs.name for theirs in tensors}
        for theirs in tensors:
            tensor = checkpoint.tensor(theirs.name)
            assert tensor.shape == tuple(theirs.shape.tolist()[::-1])
            assert checkpoint.type_of(theirs.name) == theirs.tensor_type.name
            start = tensor.shape[0] // 2
            stop = min(start + 31, tensor.shape[0])
            expected = quants.dequantize(theirs.data[start:stop], theirs.tensor_type)
            assert_same_bits(tensor.rows(start, stop).reshape(-1), expected)
