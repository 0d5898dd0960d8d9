"""Quantization methods, one file each: `quantize(weight, scheme, importance) -> QTensor`, found by the file's name.

A method that wants importance says so: CALIBRATED = True. One that wants more than that, the Hessian of a weight's inputs,
has a second function, `settle(weight, scheme, statistics) -> QTensor`, which is called while the statistics are at hand;
`quantize` then serves what has none. One that changes the model first has a function `transform`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.statistics import Statistics
from edgellm.converters.weights import LazyTensor
from edgellm.errors import UsageError
from edgellm.scheme import QTensor, Recipe, Scheme
from edgellm.spec import ModelSpec


class Quantize(Protocol):
    """A method."""

    def __call__(
        self, weight: NDArray[np.float32], scheme: Scheme, importance: NDArray[np.float32] | None = None, /
    ) -> QTensor:
        """Quantize rows of a weight.

        Args:
            weight: float32 [out, in]; rows are independent, so a caller may pass any slice of them.
            scheme: the grid.
            importance: float32 [in], mean square of every input channel; None where nothing was calibrated.
        """
        ...


class Settle(Protocol):
    """A method for weights of which more is known than importance."""

    def __call__(self, weight: NDArray[np.float32], scheme: Scheme, statistics: Statistics, /) -> QTensor:
        """Quantize rows of a weight, float32 [out, in]; rows are independent."""
        ...


class Transform(Protocol):
    """A change of the model that suits a method, its function the same."""

    def __call__(
        self,
        spec: ModelSpec,
        tensors: Callable[[str], LazyTensor],
        importance: Mapping[str, NDArray[np.float32]],
        recipes: Sequence[Recipe],
        /,
    ) -> tuple[Callable[[str], LazyTensor], Mapping[str, NDArray[np.float32]]]:
        """The changed model's tensors, and its importance.

        Args:
            importance: of the model before, by linear weight.
            recipes: of all graphs that it is changed for.
        """
        ...


def available() -> tuple[str, ...]:
    """Names of the methods: the files of this folder."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__"))


def find(method: str) -> Quantize:
    """The method of this name; UsageError for a name that is none."""
    if method not in available():
        raise UsageError(f"unknown method '{method}'", where="--method", fix=f"choose one of {', '.join(available())}")
    quantize: Quantize = importlib.import_module(f"{__name__}.{method}").quantize
    return quantize


def find_settle(method: str) -> Settle | None:
    """The method's way with Hessians, if it has one; UsageError as `find`."""
    return cast("Settle | None", _part(method, "settle"))


def find_transform(method: str) -> Transform | None:
    """What the method does to the model first, if anything; UsageError as `find`."""
    return cast("Transform | None", _part(method, "transform"))


def is_calibrated(method: str) -> bool:
    """Whether the method weighs errors by what a text shows; UsageError as `find`."""
    return bool(_part(method, "CALIBRATED"))


def _part(method: str, name: str) -> object:
    find(method)
    return getattr(importlib.import_module(f"{__name__}.{method}"), name, None)
