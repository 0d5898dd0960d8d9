"""What a text shows of the inputs of a weight, as far as it tells how much an error in one of its values costs.

Of y = W x an error D in W makes the error D x; summed over the text that is tr(D H Dᵀ) with H = E[x xᵀ], the Hessian (up
to a factor) of the layer's squared error. Its diagonal is the importance of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.weights import Array

DAMPING = 0.03  # of the mean importance: what a finite text does not show
LEAF = 64


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the inputs of one weight, or of several that share them.

    Attributes:
        importance: float32 [in], mean square of every channel.
        hessian: float32 [in, in], mean of x xᵀ; None where no method asked for it.
        peaks: float32 [in], largest magnitude of every channel; None where nobody asked.
    """

    importance: Array
    hessian: Array | None = None
    peaks: Array | None = None

    @cached_property
    def factor(self) -> Array:
        """U, upper triangular, float32 [in, in]: Uᵀ U is the inverse of the Hessian, damped."""
        if self.hessian is None:
            raise ValueError("these statistics have no Hessian")
        damped = self.hessian.astype(np.float64)
        mean = float(np.diagonal(damped).mean())
        damped[np.diag_indices(len(damped))] += DAMPING * mean if mean > 0 else 1.0
        # with rows and columns reversed, Cholesky's lower triangle becomes an upper one: H = R Rᵀ, and U is the inverse of R
        upper = np.ascontiguousarray(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1], np.float64)
        return inverse_of_upper(upper).astype(np.float32)


def inverse_of_upper(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix: by halves, so that the time goes to products of matrices."""
    size = len(matrix)
    if size <= LEAF:
        return np.triu(np.linalg.inv(matrix)).astype(np.float64, copy=False)
    half = size // 2
    first, last = inverse_of_upper(matrix[:half, :half]), inverse_of_upper(matrix[half:, half:])
    whole = np.zeros_like(matrix)
    whole[:half, :half], whole[half:, half:] = first, last
    whole[:half, half:] = -first @ matrix[:half, half:] @ last
    return whole
