"""ggml's tensor formats as float32.

A format cuts a row into blocks of a fixed number of values, each packed into a fixed number of bytes: codes of a few bits,
and the scales (sometimes minima) that turn them into weights. One small function a format unpacks n blocks at once;
`FORMATS` at the end is the list. Layouts are those of llama.cpp's ggml-common.h and ggml-quants.c.

All of it is numpy over slabs that stay in a core's cache, so it releases the GIL while it works. Order of float operations is
that of gguf-py, and results are equal to its bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgellm.scheme import QTensor, Scheme

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Floats = NDArray[np.float32]

# Values decoded at a time: 512 KiB of float32 and its codes fit a common L2, and calls into numpy stay few.
SLAB = 1 << 17


@dataclass(frozen=True)
class Format:
    """A tensor format.

    Attributes:
        code: its number in a GGUF file (ggml_type).
        name: as llama.cpp prints it.
        block: values a block.
        size: bytes a block.
        decode: writes blocks uint8 [n, size] as float32 into [n, block]; None if edgellm does not read the format.
        grid: the grid of formats that are one, `code * scale`; None of others.
        codes: reads blocks as signed codes int8 [n, block] of that grid, with a float16 scale [n] before them.
    """

    code: int
    name: str
    block: int
    size: int
    decode: Callable[[Bytes, Floats], None] | None = None
    grid: Scheme | None = None
    codes: Callable[[Bytes], Codes] | None = None


def dequantize(form: Format, data: Bytes, out: Floats) -> None:
    """Decode packed blocks. Scales that are not finite give values that are not, without a warning.

    Args:
        form: the format of `data`; its `decode` must be there.
        data: uint8 [n * form.size], may be read-only and unaligned.
        out: float32 [n * form.block], C-contiguous; overwritten.
    """
    if form.decode is None:
        raise ValueError(f"{form.name} cannot be decoded")
    blocks, values = data.reshape(-1, form.size), out.reshape(-1, form.block)
    step = SLAB // form.block
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            form.decode(blocks[start : start + step], values[start : start + step])


def quantized(form: Format, data: Bytes, shape: tuple[int, int]) -> QTensor | None:
    """Rows of packed blocks as codes and scales, without loss; None of a format that is no grid.

    Args:
        form, data: as for `dequantize`.
        shape: [rows, width] of the weights; a row is whole blocks.
    """
    if form.grid is None or form.codes is None:
        return None
    blocks = data.reshape(-1, form.size)
    rows, per_row = shape[0], shape[1] // form.block
    codes = form.codes(blocks).reshape(rows, per_row, form.block)
    return QTensor(form.grid, shape, codes, _half(blocks, 0).reshape(rows, per_row), None)


# Pieces that formats share.


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block, as float32 [n, 1]."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _fields(packed: Bytes, width: int, bits: int) -> Bytes:
    """Split bytes into codes of `bits` bits, one a byte: [n, k] to [n, k * 8 / bits].

    ggml packs runs of `width` bytes: first come the lowest `bits` of every byte of a run, then the next ones, and so on.
    """
    runs = np.ascontiguousarray(packed).reshape(-1, width)
    codes = np.empty((len(runs), 8 // bits, width), np.uint8)
    # Runs are moved as single items of `width` bytes: numpy's inner loop over 16 or 32 bytes costs more than its work.
    items = codes.view(f"V{width}")[..., 0]
    for index in range(8 // bits):
        items[:, index] = (runs >> np.uint8(index * bits)).view(f"V{width}")[:, 0]
    codes &= np.uint8((1 << bits) - 1)
    return codes.reshape(len(packed), packed.shape[1] * 8 // bits)


def _scaled(codes: NDArray[np.uint8] | NDArray[np.int8], scales: Floats, out: Floats) -> None:
    """out = codes * scales, each scale of [n, groups] for an equal share of the block."""
    out[...] = codes
    grouped = out.reshape(*scales.shape, -1)
    grouped *= scales[..., None]


def _add(shifts: Floats, out: Floats) -> None:
    """out += shifts, each of [n, groups] for an equal share of the block."""
    grouped = out.reshape(*shifts.shape, -1)
    grouped += shifts[..., None]


# Plain numbers.


def _plain(dtype: DTypeLike) -> Callable[[Bytes, Floats], None]:
    def decode(blocks: Bytes, out: Floats) -> None:
        out[...] = blocks.view(dtype)

    return decode


def _bf16(blocks: Bytes, out: Floats) -> None:
    bits = out.view(np.uint32)
    bits[...] = blocks.view("<u2")
    bits <<= np.uint32(16)


# Blocks of 32 with one float16 scale, and a float16 minimum in the "_1" kind.


def _q4_0_codes(blocks: Bytes) -> Codes:
    codes = _fields(blocks[:, 2:18], 16, 4).view(np.int8)
    codes -= np.int8(8)
    return codes


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _scaled(_q4_0_codes(blocks), _half(blocks, 0), out)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _scaled(_fields(blocks[:, 4:20], 16, 4), _half(blocks, 0), out)
    _add(_half(blocks, 2), out)


def _five_bits(high: Bytes, low: Bytes) -> Bytes:
    """Codes [n, 32] of 32 fifth bits [n, 4], in order, and 16 bytes [n, 16] of nibbles."""
    codes = np.unpackbits(high, axis=1, bitorder="little")
    codes <<= np.uint8(4)
    codes |= _fields(low, 16, 4)
    return codes


def _q5_0(blocks: Bytes, out: Floats) -> None:
    codes = _five_bits(blocks[:, 2:6], blocks[:, 6:22]).view(np.int8)
    codes -= np.int8(16)
    _scaled(codes, _half(blocks, 0), out)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    _scaled(_five_bits(blocks[:, 4:8], blocks[:, 8:24]), _half(blocks, 0), out)
    _add(_half(blocks, 2), out)


def _q8_0_codes(blocks: Bytes) -> Codes:
    return blocks[:, 2:34].view(np.int8)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    _scaled(_q8_0_codes(blocks), _half(blocks, 0), out)


# "K" formats: super-blocks of 256 whose groups of 16 or 32 have small integer scales under one float16.


def _q2_k(blocks: Bytes, out: Floats) -> None:
    scales, minima = blocks[:, 0:16] & np.uint8(15), blocks[:, 0:16] >> np.uint8(4)
    _scaled(_fields(blocks[:, 16:80], 32, 2), _half(blocks, 80) * scales, out)
    _add(_half(blocks, 82) * -minima.astype(np.float32), out)


def _q3_k(blocks: Bytes, out: Floats) -> None:
    # 16 scales of 6 bits: four low ones as nibbles of 8 bytes, two high ones as fields of the 4 bytes after them.
    scales = _fields(blocks[:, 96:104], 8, 4) | (_fields(blocks[:, 104:108], 4, 2) << np.uint8(4))
    codes = _fields(blocks[:, 0:32], 32, 1)  # the third bit, where set, cancels an offset of 4
    codes <<= np.uint8(2)
    codes |= _fields(blocks[:, 32:96], 32, 2)
    signed = codes.view(np.int8)
    signed -= np.int8(4)
    _scaled(signed, _half(blocks, 108) * (scales.view(np.int8) - np.int8(32)), out)


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima [n, 8] of the 12 bytes that Q4_K and Q5_K keep them in, 6 bits each.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their low 6 bits; scales and minima 4-7 have their low 4 bits in the
    nibbles of bytes 8-11 and their high 2 on top of bytes 0-3 and 4-7.
    """
    first, low = packed[:, :8], packed[:, 8:]
    high = (first >> np.uint8(2)) & np.uint8(0x30)
    last = high | np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=1)
    both = np.concatenate([first & np.uint8(63), last], axis=1).reshape(-1, 2, 2, 4).astype(np.float32)
    return both[:, :, 0].reshape(-1, 8), both[:, :, 1].reshape(-1, 8)


def _q4_k(blocks: Bytes, out: Floats) -> None:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    _scaled(_fields(blocks[:, 16:144], 32, 4), _half(blocks, 0) * scales, out)
    _add(_half(blocks, 2) * -minima, out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    codes = _fields(blocks[:, 16:48], 32, 1)
    codes <<= np.uint8(4)
    codes |= _fields(blocks[:, 48:176], 32, 4)
    _scaled(codes, _half(blocks, 0) * scales, out)
    _add(_half(blocks, 2) * -minima, out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    codes = _fields(blocks[:, 128:192], 32, 2)
    codes <<= np.uint8(4)
    codes |= _fields(blocks[:, 0:128], 64, 4)
    signed = codes.view(np.int8)
    signed -= np.int8(32)
    _scaled(signed, _half(blocks, 208) * blocks[:, 192:208].view(np.int8), out)


# Codes that point into a table of 16 values.

_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
# E2M1 of the OCP Microscaling specification 1.0, times two.
_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _iq4_nl(blocks: Bytes, out: Floats) -> None:
    codes = _fields(blocks[:, 2:18], 16, 4)
    _scaled(np.take(_IQ4_VALUES, codes, mode="clip"), _half(blocks, 0), out)


def _iq4_xs(blocks: Bytes, out: Floats) -> None:
    # 8 scales of 6 bits: nibbles of bytes 4-7 in order, their high bits in the 16 bits at byte 2, lowest first.
    low = np.stack([blocks[:, 4:8] & np.uint8(15), blocks[:, 4:8] >> np.uint8(4)], axis=2).reshape(-1, 8)
    high = (blocks[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & np.uint8(3)
    scales = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    codes = _fields(blocks[:, 8:136], 16, 4)
    _scaled(np.take(_IQ4_VALUES, codes, mode="clip"), _half(blocks, 0) * scales, out)


def _mxfp4(blocks: Bytes, out: Floats) -> None:
    scales = np.ldexp(np.ones((1, 1), np.float32), blocks[:, 0:1].astype(np.int32) - 128)
    _scaled(np.take(_MXFP4_VALUES, _fields(blocks[:, 1:17], 16, 4), mode="clip"), scales, out)


FORMATS: dict[int, Format] = {
    form.code: form
    for form in (
        Format(0, "F32", 1, 4, _plain("<f4")),
        Format(1, "F16", 1, 2, _plain("<f2")),
        Format(2, "Q4_0", 32, 18, _q4_0, Scheme(4, 32), _q4_0_codes),
        Format(3, "Q4_1", 32, 20, _q4_1),
        Format(6, "Q5_0", 32, 22, _q5_0),
        Format(7, "Q5_1", 32, 24, _q5_1),
        Format(8, "Q8_0", 32, 34, _q8_0, Scheme(8, 32), _q8_0_codes),
        Format(10, "Q2_K", 256, 84, _q2_k),
        Format(11, "Q3_K", 256, 110, _q3_k),
        Format(12, "Q4_K", 256, 144, _q4_k),
        Format(13, "Q5_K", 256, 176, _q5_k),
        Format(14, "Q6_K", 256, 210, _q6_k),
        Format(16, "IQ2_XXS", 256, 66),
        Format(17, "IQ2_XS", 256, 74),
        Format(18, "IQ3_XXS", 256, 98),
        Format(19, "IQ1_S", 256, 50),
        Format(20, "IQ4_NL", 32, 18, _iq4_nl),
        Format(21, "IQ3_S", 256, 110),
        Format(22, "IQ2_S", 256, 82),
        Format(23, "IQ4_XS", 256, 136, _iq4_xs),
        Format(24, "I8", 1, 1, _plain("<i1")),
        Format(25, "I16", 1, 2, _plain("<i2")),
        Format(26, "I32", 1, 4, _plain("<i4")),
        Format(27, "I64", 1, 8, _plain("<i8")),
        Format(28, "F64", 1, 8, _plain("<f8")),
        Format(29, "IQ1_M", 256, 56),
        Format(30, "BF16", 1, 2, _bf16),
        Format(34, "TQ1_0", 256, 54),
        Format(35, "TQ2_0", 256, 66),
        Format(39, "MXFP4", 32, 17, _mxfp4),
    )
}
