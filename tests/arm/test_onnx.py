"""onnxruntime on ARM boards: one without dot products (a Raspberry Pi 4), one with them (a 5), one with matrix products."""

from __future__ import annotations

import pytest

from tests.arm.instructions import DOTPROD, I8MM
from tests.arm.same import Same

pytestmark = [pytest.mark.arm, pytest.mark.slow]
RUNTIME, PACKAGE, LIBRARY = "onnx", "onnxruntime", "onnxruntime"
KERNELS = {"cortex-a72": set(), "cortex-a76": {DOTPROD}, "i8mm": {DOTPROD, I8MM}}


class TestOnnx(Same):
    pass
