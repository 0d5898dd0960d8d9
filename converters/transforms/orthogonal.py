"""Orthogonal matrices that spread every channel evenly over all others, for any number of channels.

A Hadamard matrix has entries of one magnitude, so an outlier in one channel leaves an equal, small part in each. Most widths
of models are no powers of two, but 36 * 16 = 576 or 28 * 32 = 896, and Paley's two constructions make orders like 12, 20, 28
and 36. What they do not reach gets a Hartley matrix for its odd factor: entries there are at most √2 times the even share.
Random signs on the inputs make different matrices of one construction.

Source: Paley, "On Orthogonal Matrices" (1933); Ashkboos et al., "QuaRot" (2024), for random signs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.weights import Array

CHUNK = 256  # columns that `rows` turns at once: what it needs besides the matrix itself


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """R = diag(signs) (left ⊗ right), an orthogonal matrix [n, n] that is applied by its factors.

    What is several times n wide is taken for blocks of n, each turned by R: the heads of a projection. Values that are not
    finite spread; whoever reads a weight says so.

    Attributes:
        signs: float32 [n], each 1 or -1.
        left, right: float32 [m, m] and [n / m, n / m], orthogonal.
    """

    signs: Array
    left: Array
    right: Array

    @property
    def size(self) -> int:
        """n."""
        return len(self.signs)

    def matrix(self) -> Array:
        """R itself, float32 [n, n]."""
        return self.columns(np.eye(self.size, dtype=np.float32))

    def columns(self, values: Array) -> Array:
        """Each row times R: values @ R for values [..., n or blocks of n]."""
        m, k = len(self.left), len(self.right)
        with np.errstate(all="ignore"):
            right = (values.reshape(-1, self.size) * self.signs).reshape(-1, k) @ self.right
            turned: Array = np.matmul(self.left.T, right.reshape(-1, m, k)).reshape(values.shape)
        return turned

    def rows(self, values: Array) -> Array:
        """Each column turned: R.T @ values for values [n or blocks of n, ...], which are overwritten."""
        m, k = len(self.left), len(self.right)
        flat = values.reshape(-1, m, k, math.prod(values.shape[1:]))
        signs = self.signs.reshape(m, k, 1)
        for block in flat:
            for start in range(0, flat.shape[-1], CHUNK):
                with np.errstate(all="ignore"):
                    part = np.matmul(self.right.T, block[..., start : start + CHUNK] * signs)
                    block[..., start : start + CHUNK] = (self.left.T @ part.reshape(m, -1)).reshape(part.shape)
        return flat.reshape(values.shape)


def randomized(size: int, *seed: int) -> Orthogonal:
    """A matrix with random signs; the same size and seed give the same one.

    Args:
        size: channels, at least 1.
        seed: non-negative numbers.
    """
    odd, twos = base_order(size)
    left, right = (hadamard(odd) if is_hadamard(odd) else hartley(odd)), np.ones((1, 1))
    for _ in range(twos):  # factors of about equal size cost least
        if len(left) <= len(right):
            left = np.kron(left, SYLVESTER)
        else:
            right = np.kron(right, SYLVESTER)
    signs = np.random.default_rng([*seed, size]).choice(np.array([-1, 1], np.float32), size)
    return Orthogonal(signs, _normed(left), _normed(right))


SYLVESTER = np.array([[1.0, 1.0], [1.0, -1.0]])


def base_order(size: int) -> tuple[int, int]:
    """(order, twos) with order * 2**twos = size: the least order that is known to have a Hadamard matrix, else the odd part."""
    twos = (size & -size).bit_length() - 1
    odd = size >> twos
    return next(((odd << more, twos - more) for more in range(twos + 1) if is_hadamard(odd << more)), (odd, twos))


def is_hadamard(order: int) -> bool:
    """Whether Paley's constructions (or the trivial one) give a Hadamard matrix of this order."""
    return order == 1 or (order % 4 == 0 and (_is_prime(order - 1) or _is_prime(order // 2 - 1, residue=1)))


def hadamard(order: int) -> NDArray[np.float64]:
    """A matrix [order, order] of 1 and -1 with orthogonal rows, for an order that `is_hadamard`."""
    if order == 1:
        return np.ones((1, 1))
    if _is_prime(order - 1):  # I + S with S skew
        bordered = _bordered(order - 1)
        bordered[1:, 0] = -1
        return bordered + np.eye(order)
    pair = np.array([[1.0, -1.0], [-1.0, -1.0]])
    return np.kron(_bordered(order // 2 - 1), SYLVESTER) + np.kron(np.eye(order // 2), pair)


def hartley(order: int) -> NDArray[np.float64]:
    """cos + sin of 2πij / order: rows are orthogonal, entries at most √2."""
    angles = 2 * np.pi * (np.outer(np.arange(order), np.arange(order)) % order) / order
    return np.cos(angles) + np.sin(angles)


def _bordered(prime: int) -> NDArray[np.float64]:
    """[[0, 1], [1, χ(j - i)]] where χ says whether a number is a square modulo `prime`."""
    squares = {i * i % prime for i in range(1, prime)}
    character = np.array([0] + [1 if i in squares else -1 for i in range(1, prime)], np.float64)
    out = np.ones((prime + 1, prime + 1))
    out[0, 0] = 0
    out[1:, 1:] = character[(np.arange(prime)[None] - np.arange(prime)[:, None]) % prime]
    return out


def _is_prime(number: int, residue: int = 3) -> bool:
    """Whether it is a prime that leaves `residue` when divided by 4."""
    return number > 2 and number % 4 == residue and all(number % each for each in range(3, math.isqrt(number) + 1, 2))


def _normed(matrix: NDArray[Any]) -> Array:
    return (matrix / math.sqrt(len(matrix))).astype(np.float32)
