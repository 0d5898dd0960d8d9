"""GPTQ, as AutoGPTQ, GPTQModel and transformers write it (`checkpoint_format` gptq and gptq_v2), with 4 bits.

    qweight int32 [in / 8, out]         eight neighbouring inputs a word, the first in the lowest nibble
    qzeros  int32 [groups, out / 8]     eight neighbouring outputs a word; the first format stores a zero point minus one
    scales  float16 [groups, out]
    g_idx   int32 [in]                  the group of every input

Where groups were made in the order of the activations (act-order), inputs of one group lie apart and g_idx says where. A kernel
of blocks cannot hold that as it is, and sorting the inputs would mean sorting the outputs of what comes before: the residual
stream, which has one order for all layers. Such tensors are dequantized and rounded anew.

Source: Frantar et al., "GPTQ" (2022); the format is AutoGPTQ's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.converters.checkpoints.packed import BITS, Layout, group_size, refused

ZERO_SHIFT = {"gptq": 1, "gptq_v2": 0}


def layout(settings: Mapping[str, Any], where: Path) -> Layout:
    """How these checkpoints pack; SourceError for a variant that is not read."""
    if settings.get("bits") != BITS:
        raise refused("GPTQ", f"with {str(settings.get('bits'))[:20]} bits", where)
    kind = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if kind not in ZERO_SHIFT or settings.get("is_marlin_format") or settings.get("pack_dtype", "int32") != "int32":
        raise refused("GPTQ", f"in the format {str(kind)[:20]!r}", where)
    group = group_size("GPTQ", settings, "group_size", where=where)
    return Layout(group, along_inputs=True, order=tuple(range(8)), zero_shift=ZERO_SHIFT[kind])
