"""What each `--quant` promises of each tensor of each architecture."""

from __future__ import annotations

import pytest

from edgellm.converters.architectures import describe
from edgellm.converters.architectures.base import tensor_shapes
from edgellm.converters.onnx import export
from edgellm.converters.recipes import recipe
from tests.tiny_models import CASES, MemoryCheckpoint, tiny


@pytest.mark.parametrize(("architecture", "variant"), CASES)
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_linears_get_the_level_tables_eight_bits_and_vectors_none(architecture: str, variant: str, block_size: int) -> None:
    _, config, state = tiny(architecture, variant)
    shapes = tensor_shapes(describe(MemoryCheckpoint(config, state))[0])
    for quant, bits in (("int4", 4), ("int8", 8), ("fp32", None)):
        chosen = recipe(quant, "rtn", block_size, export.grid)
        for name, shape in shapes.items():
            table = name in ("embed.weight", "head.weight")
            wanted = None if bits is None or len(shape) == 1 else 8 if table else bits
            scheme = chosen.scheme(name)
            assert (scheme and scheme.bits) == wanted, name
            assert scheme is None or scheme.block == (max(block_size, 64) if table else block_size)
