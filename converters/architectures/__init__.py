"""From a checkpoint to a spec and its weights: `describe`.

The architecture's file is found by its name in this folder and imported when it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from edgellm.converters.architectures.base import Architecture, tensor_shapes
from edgellm.converters.checkpoints.base import Checkpoint
from edgellm.converters.config import Config
from edgellm.converters.weights import Affine, LazyTensor, RowRange, Unpermuted
from edgellm.errors import SourceError
from edgellm.spec import ModelSpec

SHOWN = 12  # how many faulty tensors a message names
HF_ROOTS = ("model.", "language_model.model.", "model.language_model.", "")


def available() -> tuple[str, ...]:
    """Names of the architectures that can be converted: the files of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(file.stem for file in files if file.stem not in ("__init__", "base")))


def describe(checkpoint: Checkpoint, max_context: int | None = None) -> tuple[ModelSpec, Callable[[str], LazyTensor]]:
    """What a checkpoint is, and its tensors by canonical name.

    The tensors come as the decoder wants them: cut out of fused matrices, un-permuted, norms as plain factors,
    multipliers folded in. Names and shapes of all of them are checked here; no data is read.

    Args:
        checkpoint: an opened source; it has to stay open as long as the tensors are read.
        max_context: positions to prepare for; None takes the model's own limit, at most 8192.

    Raises:
        SourceError: an unknown architecture, a bad config, missing tensors or wrong shapes.
        UsageError: max_context is more than the model has.
    """
    name = checkpoint.architecture.removesuffix("_text")
    if name not in available():
        raise SourceError(
            f"the architecture {checkpoint.architecture!r} is not supported",
            where=checkpoint.provenance.source,
            fix=f"supported are {', '.join(available())}",
        )
    module = importlib.import_module(f"{__name__}.{name}")
    architecture: Architecture = module.describe(Config.of(checkpoint), max_context)
    tensors = _gguf(architecture, checkpoint) if checkpoint.naming == "gguf" else _hf(architecture, checkpoint)

    def tensor(canonical: str) -> LazyTensor:
        return tensors[canonical]

    return architecture.spec, tensor


def _hf(architecture: Architecture, checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    names = checkpoint.names()
    root = next((root for root in HF_ROOTS if f"{root}embed_tokens.weight" in names), HF_ROOTS[0])
    fixed = {
        "embed": f"{root}embed_tokens",
        "norm": f"{root}norm",
        "head": "language_model.lm_head" if root.startswith("language_model.") else "lm_head",
    }
    tensors = _tensors(architecture.spec, checkpoint, fixed, architecture.hf_names, f"{root}layers.")
    shift, scale = architecture.hf_norm_shift, architecture.residual_scale
    for name, tensor in tensors.items():
        if shift and name.endswith("norm.weight"):
            tensors[name] = Affine(tensor, shift=shift)
        elif scale != 1 and name.rsplit(".", 2)[-2] in ("o", "down"):
            tensors[name] = Affine(tensor, scale=scale)
    return tensors


def _gguf(architecture: Architecture, checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    fixed = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
    tensors = _tensors(architecture.spec, checkpoint, fixed, architecture.gguf_names, "blk.")
    kind, scale = architecture.spec.attention(0), architecture.residual_scale
    for name, tensor in tensors.items():
        part = name.rsplit(".", 2)[-2]
        if architecture.gguf_permuted and part in ("q", "k"):
            tensors[name] = Unpermuted(tensor, kind.heads if part == "q" else kind.kv_heads)
        elif scale != 1 and part in ("o", "down"):
            tensors[name] = Affine(tensor, scale=scale)
    return tensors


def _tensors(
    spec: ModelSpec, checkpoint: Checkpoint, fixed: Mapping[str, str], layer_names: Mapping[str, str], layer_root: str
) -> dict[str, LazyTensor]:
    """Canonical name to tensor as the checkpoint has it, after a check of all names and shapes."""
    shapes = tensor_shapes(spec)
    sources: dict[str, str] = {}
    for name in shapes:
        stem, suffix = name.rsplit(".", 1)
        if stem in fixed:
            sources[name] = f"{fixed[stem]}.{suffix}"
        else:
            _, layer, part = stem.split(".")
            sources[name] = f"{layer_root}{layer}.{layer_names[part]}.{suffix}"
    parts: dict[str, list[str]] = {}  # the checkpoint's name -> the canonical tensors in it, in row order
    order = {part: index for index, part in enumerate(layer_names)}
    for name in sorted(sources, key=lambda name: order.get(name.rsplit(".", 2)[-2], 0)):
        parts.setdefault(sources[name], []).append(name)

    missing = sorted(parts.keys() - checkpoint.names())
    if missing:
        raise _faulty("tensors are missing", missing, checkpoint)
    tensors: dict[str, LazyTensor] = {}
    wrong: list[str] = []
    for source, members in parts.items():
        tensor = checkpoint.tensor(source)
        wanted = (sum(shapes[name][0] for name in members), *shapes[members[0]][1:])
        if tuple(tensor.shape) != wanted:
            wrong.append(f"{source} is {list(tensor.shape)}, not {list(wanted)}")
            continue
        start = 0
        for name in members:
            stop = start + shapes[name][0]
            tensors[name] = tensor if len(members) == 1 else RowRange(tensor, start, stop)
            start = stop
    if wrong:
        raise _faulty("tensors have the wrong shape", wrong, checkpoint)
    return tensors


def _faulty(what: str, faults: list[str], checkpoint: Checkpoint) -> SourceError:
    shown = ", ".join(faults[:SHOWN]) + (f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")
    return SourceError(
        f"{len(faults)} {what}: {shown}",
        where=checkpoint.provenance.source,
        fix="the source is damaged, incomplete or not what its config says",
    )
