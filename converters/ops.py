"""Ops: the operations that a transformer is written in, and that each back end lowers to the best it has.

`T` is a back end's tensor (an array, or a name in a graph) and `P` its positions: one opaque handle, made once per
call by the back end and passed to every attention. `decoder` is written against this protocol alone.

Activations are [batch, tokens, channels].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np

from edgellm.converters.weights import InMemory, Stacked, Weight
from edgellm.spec import Activation, AttentionSpec

T = TypeVar("T")
P = TypeVar("P", contravariant=True)


@dataclass(frozen=True)
class Linear:
    """A logical projection: weight [out, in] and an optional bias [out]."""

    weight: Weight
    bias: Weight | None = None


def fusable(linears: Sequence[Linear]) -> list[list[Linear]]:
    """Neighbours of one scheme and of one kind of inputs, which one product can serve.

    Where scales are fixed, what comes out of each linear has one of its own, and so does its product.
    """

    def kind(linear: Linear) -> tuple[object, ...]:
        weight = linear.weight
        alone = weight.scheme is not None and weight.activations == 16
        return weight.scheme, weight.activations, weight.name if alone else None

    return [list(same) for _, same in groupby(linears, key=kind)]


def fuse(linears: Sequence[Linear]) -> Linear:
    """One linear whose output is those of several, one behind the other."""
    if len(linears) == 1:
        return linears[0]
    weights = [linear.weight for linear in linears]
    name = "+".join(weight.name for weight in weights)
    first = weights[0]
    weight = Weight(name, Stacked([each.tensor for each in weights]), first.scheme, first.importance, first.activations)
    if all(linear.bias is None for linear in linears):
        return Linear(weight)
    biases = [
        InMemory(np.zeros(linear.weight.tensor.shape[0], np.float32)) if linear.bias is None else linear.bias.tensor
        for linear in linears
    ]
    return Linear(weight, Weight(name + ".bias", Stacked(biases)))


class Ops(Protocol[T, P]):
    """What a back end provides."""

    def embed(self, ids: T, table: Weight, scale: float) -> T:
        """Rows of `table` [vocab, D] at `ids` [B, T], times `scale`: [B, T, D]."""
        ...

    def norm(self, x: T, gamma: Weight, eps: float, heads: int = 1) -> T:
        """RMS norm of each of `heads` equal groups of the last axis; gamma is [D // heads]."""
        ...

    def linears(self, x: T, linears: Sequence[Linear]) -> list[T]:
        """Each linear applied to the same x; a back end may fuse those whose schemes agree."""
        ...

    def attention(self, q: T, k: T, v: T, spec: AttentionSpec, layer: int, positions: P) -> T:
        """Rotate, append k and v to the layer's cache, attend: [B, T, heads * head_dim].

        q is [B, T, heads * head_dim], k and v are [B, S, kv_heads * head_dim] with S = T unless the mask is cross.
        """
        ...

    def gated(self, gate: T, up: T, activation: Activation) -> T:
        """activation(gate) * up."""
        ...

    def add(self, a: T, b: T) -> T:
        """Elementwise sum."""
        ...

    def select(self, x: T, positions: P) -> T:
        """The positions whose logits are wanted: the last one, all, or none, as the call asks."""
        ...

    def logits(self, x: T, head: Weight, scale: float, softcap: float | None) -> T:
        """scale * x @ head.T, soft-capped: [B, T, vocab]. `head` may be the embedding's table."""
        ...
