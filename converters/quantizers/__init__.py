"""Quantization methods, one file each: `quantize(weight, scheme) -> QTensor`, found by the file's name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import UsageError
from edgellm.scheme import QTensor, Scheme

Quantize = Callable[[NDArray[np.float32], Scheme], QTensor]


def available() -> tuple[str, ...]:
    """Names of the methods: the files of this folder."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__"))


def find(method: str) -> Quantize:
    """The method of this name; UsageError for a name that is none."""
    if method not in available():
        raise UsageError(f"unknown method '{method}'", where="--method", fix=f"choose one of {', '.join(available())}")
    quantize: Quantize = importlib.import_module(f"{__name__}.{method}").quantize
    return quantize
