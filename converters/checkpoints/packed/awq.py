"""AWQ, as AutoAWQ and transformers write it (version "gemm"), with 4 bits.

    qweight int32 [in, out / 8]         eight neighbouring outputs a word, from the lowest nibble: 0, 2, 4, 6, 1, 3, 5, 7
    qzeros  int32 [groups, out / 8]     packed the same way
    scales  float16 [groups, out]

What AWQ scaled is folded into the norms and linears before, so nothing else is to be done here.

Source: Lin et al., "AWQ" (2023); the format is AutoAWQ's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.converters.checkpoints.packed import BITS, Layout, group_size, refused

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def layout(settings: Mapping[str, Any], where: Path) -> Layout:
    """How these checkpoints pack; SourceError for a variant that is not read."""
    bits = settings.get("bits", settings.get("w_bit"))
    version = str(settings.get("version") or settings.get("checkpoint_format") or "gemm")
    if bits != BITS:
        raise refused("AWQ", f"with {str(bits)[:20]} bits", where)
    if version.lower() != "gemm":
        raise refused("AWQ", f"in the version {version[:20]!r}", where)
    return Layout(group_size("AWQ", settings, "group_size", "q_group_size", where=where), False, ORDER, zero_shift=0)
