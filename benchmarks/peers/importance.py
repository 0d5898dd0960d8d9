"""The importance of a GGUF file's input channels, from the text that edgellm calibrates by: llama.cpp's importance matrix.

llama.cpp weighs the rounding errors of a row by a number for each input of the linear: the mean of the input's square over a
text, which is what `llama-imatrix` collects. Edgellm's calibration takes the same mean. It is taken here over as much of the
text as any method of ours reads, so that both quantize by the same knowledge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks import gguf_file
from edgellm.benchmarks.whole import whole
from edgellm.errors import SourceError

Array = NDArray[np.float32]
SLICE = 4 << 20


def by_tensor(source: Path, folder: Path) -> Mapping[str, Array]:
    """float32 [in] for every linear of the layers, by the GGUF file's own tensor name; kept in `folder` for this text.

    Raises:
        RuntimeUnavailable: the gguf package is missing.
        SourceError: no GGUF file, or a linear whose inputs are not known.
        ResourceError: it cannot be kept.
    """
    from edgellm.converters import architectures, calibration_text
    from edgellm.converters.architectures.base import GGUF_NAMES
    from edgellm.converters.calibration import calibrate
    from edgellm.converters.calibration import digest as digest_of
    from edgellm.converters.checkpoints import open_checkpoint
    from edgellm.converters.preparation import HESSIAN_TOKENS
    from edgellm.converters.weights import Weight

    with open_checkpoint(source) as checkpoint:
        spec, tensors = architectures.describe(checkpoint)
        windows = calibration_text.windows(checkpoint.text().tokenizer, spec, HESSIAN_TOKENS)
        kept = folder / f"importance-{digest_of(windows)[:12]}.npz"
        if kept.is_file():
            with np.load(kept) as file:
                return dict(file)
        found = calibrate(spec, lambda name: Weight(name, tensors(name)), windows, SLICE, hold=True).importance
    matrix: dict[str, Any] = {}
    for name, values in found.items():
        _, layer, part, suffix = name.split(".")
        matrix[f"blk.{layer}.{GGUF_NAMES[part]}.{suffix}"] = values
    for name, width in linears(source).items():  # llama.cpp rounds a tensor without an entry as if there were no matrix
        if matrix.get(name, np.empty(0)).shape != (width,):
            raise SourceError("what goes into it is not known", where=f"{source}: {name}", fix="leave the -imatrix files out")
    folder.mkdir(parents=True, exist_ok=True)
    with whole(kept, "free some space") as partial, partial.open("wb") as file:
        np.savez(file, **matrix)
    return matrix


def linears(source: Path) -> dict[str, int]:
    """The matrices of a GGUF file's layers: name to how many inputs they have."""
    tensors = gguf_file.open_gguf(source).tensors
    return {each.name: int(each.shape[0]) for each in tensors if each.name.startswith("blk.") and len(each.shape) == 2}


def digest(matrix: Mapping[str, Array]) -> str:
    """Of a matrix, a few hex digits: another text or another model, another name."""
    whole = hashlib.sha256()
    for name in sorted(matrix):
        whole.update(name.encode() + np.ascontiguousarray(matrix[name], "<f4").tobytes())
    return whole.hexdigest()[:8]
