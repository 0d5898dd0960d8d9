"""Rotation: the residual stream and the heads' values in another basis, where no channel stands out.

Rounding to a grid costs most where a few channels are much larger than the rest. An orthogonal R turns the stream x into x R,
and its inverse is folded into whatever reads it, so the function stays as it is and outliers are shared out evenly:

    R (all of the residual)   embedding and head @ R; q, k, v, gate, up @ R; R.T @ o, down and their biases
    Q (a head's values)       Q.T @ each head's rows of v and of its bias; each head's columns of o @ Q

An RMS norm does not change under R, but its gamma does: first it is folded into the linears that follow. The final gamma g is
folded into an untied head. A tied head has its table rotated as the embedding, E R, and M = R.T diag(g) R stands between norm
and head: norm(x) diag(g) E.T = norm(x R) M (E R).T. That is one small product a token; a head of its own would be a fifth of a
small model. M is nearly c I, and rounding a row to 8 bits would lose the rest of it, so the final gamma becomes c, and
`final.weight` is M / c - I, which is added: measured on SmolLM2, 8 bits cost nothing then.

Norms behind the sub-layers stand between o, down and the residual and cannot be folded into either: there only values rotate.
Norms of q and k see none of it. Rounded to nearest with a scale for a whole row, a rotated model is worse than the plain one:
outliers that rounding spared are everywhere now. Methods that make up for their errors gain.

Source: Ashkboos et al., "QuaRot" (2024); Liu et al., "SpinQuant" (2024), R1 and R2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from edgellm.converters.transforms.lazy import Grouped, Made, Recent, Whole
from edgellm.converters.transforms.orthogonal import Orthogonal, randomized
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import UsageError
from edgellm.spec import ModelSpec

Tensors = Callable[[str], LazyTensor]
NORM_BEFORE = {"q": "attn_norm", "k": "attn_norm", "v": "attn_norm", "gate": "mlp_norm", "up": "mlp_norm"}
OUTPUTS = ("o", "down")  # what is added to the residual


def fits(spec: ModelSpec) -> str | None:
    """Why the residual stream of this model cannot be rotated, or None where it can."""
    if spec.post_norm or not spec.pre_norm:
        return "its norms behind the sub-layers weigh channels of the residual one by one"
    if spec.final_linear:
        return "it is rotated already"
    return None


def apply(spec: ModelSpec, tensors: Tensors, seed: int = 0) -> tuple[ModelSpec, Tensors]:
    """The same function with rotated values, and a rotated residual where it `fits`; no weight is read."""
    spec, tensors = values(spec, tensors, seed)
    return (spec, tensors) if fits(spec) else residual(spec, tensors, seed)


def values(spec: ModelSpec, tensors: Tensors, seed: int = 0) -> tuple[ModelSpec, Tensors]:
    """The same function with each layer's values in a basis of their own; query heads of a group share that of their values."""

    @cache
    def turned(name: str) -> LazyTensor:
        stem, layer, part, kind = _parts(name)
        if stem != "layers" or part not in ("v", "o") or (part, kind) == ("o", "bias"):
            return tensors(name)
        size = spec.attention(layer).head_dim
        turn = randomized(size, seed, 1, layer)
        return Grouped(tensors(name), turn.rows, size) if part == "v" else Grouped(tensors(name), turn.columns)

    return spec, turned


def residual(spec: ModelSpec, tensors: Tensors, seed: int = 0) -> tuple[ModelSpec, Tensors]:
    """The same function with the residual stream in another basis.

    A tied head stays tied: the spec has a `final_linear` then.

    Raises:
        UsageError: the model has norms that forbid it, see `fits`.
    """
    reason = fits(spec)
    if reason is not None:
        raise UsageError(f"the residual of a {spec.architecture} cannot be rotated: {reason}", where="rotation", fix="leave it")
    turn, recent = randomized(spec.hidden_size, seed, 0), Recent()
    tied = spec.tied_head

    @cache
    def gamma(name: str) -> Array:
        return tensors(f"{name}.weight").array()

    def folded(name: str, norm: str) -> LazyTensor:
        return Grouped(tensors(name), lambda rows: turn.columns(rows * gamma(norm)))

    @cache
    def turned(name: str) -> LazyTensor:
        stem, layer, part, kind = _parts(name)
        if stem == "embed":
            return Grouped(tensors(name), turn.columns)
        if stem == "head":
            return folded(name, "norm")
        if stem == "final":
            return Made((turn.size, turn.size), lambda: _beside_one(turn, gamma("norm")))
        if part in ("norm", "attn_norm", "mlp_norm"):
            size = _size(gamma("norm")) if part == "norm" and tied else np.float32(1)
            return Made((turn.size,), lambda: np.full(turn.size, size))
        if part in OUTPUTS:
            return Whole(tensors(name), turn.rows, recent)
        if part in NORM_BEFORE and kind == "weight":
            return folded(name, f"layers.{layer}.{NORM_BEFORE[part]}")
        return tensors(name)

    return replace(spec, final_linear=tied), turned


def _parts(name: str) -> tuple[str, int, str, str]:
    """(stem, layer, part, kind) of a canonical name; tensors outside the layers are their own stem and part."""
    pieces = name.split(".")
    return (pieces[0], int(pieces[1]), pieces[2], pieces[3]) if len(pieces) == 4 else (pieces[0], 0, pieces[0], pieces[1])


def _size(gamma: Array) -> np.float32:
    """c: the root mean square, which is near the mean where gammas are alike, and never near 0 where they are not."""
    size = np.float32(np.sqrt(np.mean(np.square(gamma, dtype=np.float64))))
    return size if size > 0 else np.float32(1)


def _beside_one(turn: Orthogonal, gamma: Array) -> Array:
    """R.T diag(g / c) R - I, float32 [n, n]."""
    with np.errstate(all="ignore"):  # what is not finite is said by whoever writes it
        return turn.rows(turn.columns(np.diag(gamma / _size(gamma) - 1)))
