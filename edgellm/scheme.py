"""Schemes, recipes and quantized tensors: what is stored in how many bits.

A Scheme is a grid, a Recipe says which tensor gets which scheme, a QTensor is a tensor on its grid.
Back ends declare which schemes they take, so a quantizer never guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scales = Literal["float32", "positive", "positive bfloat16"]
IMPORTED = "imported"  # the method of codes that the source had already, and that are carried over as they are


@dataclass(frozen=True)
class Scheme:
    """A uniform grid: `weight ≈ (code - zero_point) * scale`, one scale per block of a row.

    Attributes:
        bits: 4 or 8; codes are signed, from -2**(bits-1) to 2**(bits-1) - 1.
        block: how many neighbouring input channels share a scale; 0 for the whole row ("per channel").
        symmetric: every zero point is 0 and none are stored.
        scales: which scales the kernels take: any float32, only positive ones, or positive ones that bfloat16 holds.
            Where they must be positive, 8-bit codes start at -127: products of two -128 overflow some kernels.
        narrow_range: codes start at -(2**(bits-1) - 1), so that they are symmetric; some kernels do not know the lowest one.
    """

    bits: int
    block: int
    symmetric: bool = True
    scales: Scales = "float32"
    narrow_range: bool = False

    @property
    def low(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) + (self.narrow_range or (self.bits == 8 and self.scales != "float32"))

    @property
    def high(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    def size(self, width: int) -> int:
        """Values of a block in rows of `width`."""
        return self.block or width

    def blocks(self, width: int) -> int:
        """Blocks in a row of `width` values; the last one may be partly filled."""
        return -(-width // self.size(width))


@dataclass(frozen=True)
class QTensor:
    """Rows of a weight matrix on a Scheme's grid.

    Attributes:
        scheme: the grid.
        shape: (out, in) of the weight.
        codes: int8 [out, blocks, block]; channels past `in` hold the zero point.
        scales: float32 [out, blocks].
        zero_points: int8 [out, blocks], or None when the scheme is symmetric.
    """

    scheme: Scheme
    shape: tuple[int, int]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int8] | None

    def dequantize(self) -> NDArray[np.float32]:
        """The weight that the codes stand for, float32 [out, in]."""
        values = self.codes.astype(np.float32)
        if self.zero_points is not None:
            values -= self.zero_points[..., None].astype(np.float32)
        values *= self.scales[..., None]
        return values.reshape(self.shape[0], values.shape[1] * values.shape[2])[:, : self.shape[1]]

    def on(self, scheme: Scheme) -> QTensor | None:
        """The same values, exactly, on another grid; None where that does not hold every tensor of this grid.

        Blocks may be cut into smaller ones, codes of 4 bit stored in 8, and zero points of 0 added.
        """
        own, (rows, width) = self.scheme, self.shape
        cut, rest = divmod(own.size(width), scheme.size(width))
        wider = scheme.bits > own.bits
        if rest or scheme.scales != "float32" or scheme.low > own.low or scheme.high < own.high:
            return None
        if scheme.symmetric and not own.symmetric and not wider:
            return None
        blocks = scheme.blocks(width)  # of a last block that is partly filled, small ones may be left that hold nothing
        codes = self.codes.reshape(rows, self.codes.shape[1] * cut, scheme.size(width))[:, :blocks]
        scales, zeros = np.repeat(self.scales, cut, axis=1)[:, :blocks], None
        if self.zero_points is not None:
            zeros = np.repeat(self.zero_points, cut, axis=1)[:, :blocks]
            if scheme.symmetric:
                codes, zeros = codes - zeros[..., None], None
        elif not scheme.symmetric:
            zeros = np.zeros(scales.shape, np.int8)
        return QTensor(scheme, self.shape, codes, scales, zeros)


@dataclass(frozen=True, eq=False)
class CacheGrid:
    """Keys and values of one layer in 8 bit: `value ≈ code * scale + center`, codes of int8.

    Attention does not see the centers of keys: a query's products with them are the same for every slot, and softmax takes
    no notice of what all scores have in common. So centers are only where scores reach softmax as they are.

    Attributes:
        keys, values: scales, float32 [kv_heads, head_dim], positive; of keys after rotation.
        centers: of keys, float32 [kv_heads, head_dim].
    """

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    centers: NDArray[np.float32]


@dataclass(frozen=True)
class Rule:
    """Tensors whose canonical name matches `pattern` (shell style) get `scheme`; None keeps float32.

    Attributes:
        method: what made their codes, where that was not the recipe's method: IMPORTED.
        activations: bits of what comes into their products, where that is not as the recipe says.
    """

    pattern: str
    scheme: Scheme | None
    method: str | None = None
    activations: int | None = None


@dataclass(frozen=True)
class Recipe:
    """Which tensor gets which scheme: the first matching rule wins, and what none names stays float32.

    Attributes:
        kv: bits of keys and values, 8 or 32.
        calibration: sha256 of the token ids of the text that had a say in scales, bits or activations, or None where none had.
        activations: bits of what comes into products with quantized weights: 8 (rounded as it comes), 16 (scales fixed
            beforehand), or 32 for float32.
    """

    name: str
    method: str
    rules: tuple[Rule, ...] = ()
    kv: int = 32
    calibration: str | None = None
    activations: int = 8

    def rule(self, tensor: str) -> Rule | None:
        """The rule of the tensor with this canonical name."""
        return next((rule for rule in self.rules if fnmatchcase(tensor, rule.pattern)), None)

    def scheme(self, tensor: str) -> Scheme | None:
        """The scheme of the tensor with this canonical name."""
        rule = self.rule(tensor)
        return None if rule is None else rule.scheme

    def activations_of(self, tensor: str) -> int:
        """Bits of what comes into the product with the tensor of this canonical name; 32 where it is not quantized."""
        rule = self.rule(tensor)
        if rule is None or rule.scheme is None:
            return 32
        return self.activations if rule.activations is None else rule.activations
