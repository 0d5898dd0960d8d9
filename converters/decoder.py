"""The transformer decoder, written once against `Ops`.

    ids ─> embed ─> body: layers of (attention, MLP), the last one for the selected positions only ─> norm, head ─> logits

The body takes x [B, T, D], so anything that makes such an x (ids, an image, another modality) can stand before it.
Weights are asked for by canonical name:

    embed.weight, norm.weight, head.weight (untied only), and per layer N
    layers.N.{attn_norm, attn_post_norm, mlp_norm, mlp_post_norm, q_norm, k_norm}.weight
    layers.N.{q, k, v, o, gate, up, down}.{weight, bias}
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgellm.converters.ops import Linear, Ops, P, T
from edgellm.converters.weights import Weight
from edgellm.spec import ModelSpec

Weights = Callable[[str], Weight]


def decode(spec: ModelSpec, weights: Weights, ops: Ops[T, P], ids: T, positions: P) -> T:
    """Logits [B, selected, vocab] of token ids [B, T]."""
    x = ops.embed(ids, weights("embed.weight"), spec.embed_scale)
    return logits(spec, weights, ops, body(spec, weights, ops, x, positions))


def body(spec: ModelSpec, weights: Weights, ops: Ops[T, P], x: T, positions: P) -> T:
    """Hidden states of the selected positions after the last layer, before the final norm: [B, selected, D].

    The other positions leave keys and values in every cache; past the last layer's attention nothing of them is computed.
    """
    for index in range(len(spec.layers)):
        x = layer(spec, weights, ops, index, x, positions)
    return x


def layer(spec: ModelSpec, weights: Weights, ops: Ops[T, P], index: int, x: T, positions: P) -> T:
    """Hidden states after one layer, [B, T, D], or [B, selected, D] after the last one."""
    chosen = partial(ops.select, positions=positions) if index == len(spec.layers) - 1 else _every
    attention = partial(_attention, spec, weights, ops, index, positions, chosen)
    x = _residual(spec, weights, ops, x, f"layers.{index}.attn", attention, chosen)
    return _residual(spec, weights, ops, x, f"layers.{index}.mlp", partial(_mlp, spec, weights, ops, index), _every)


def logits(spec: ModelSpec, weights: Weights, ops: Ops[T, P], x: T) -> T:
    """Final norm and head over hidden states x [B, N, D]: [B, N, vocab]."""
    x = ops.norm(x, weights("norm.weight"), spec.norm_eps)
    head = weights("embed.weight" if spec.tied_head else "head.weight")
    return ops.logits(x, head, spec.logit_scale, spec.logit_softcap)


def _every(x: T) -> T:
    return x


def _residual(
    spec: ModelSpec,
    weights: Weights,
    ops: Ops[T, P],
    x: T,
    name: str,
    sublayer: Callable[[T], T],
    chosen: Callable[[T], T],
) -> T:
    """chosen(x) + post_norm(sublayer(pre_norm(x))), each norm where the spec has it."""
    h = ops.norm(x, weights(f"{name}_norm.weight"), spec.norm_eps) if spec.pre_norm else x
    h = sublayer(h)
    if spec.post_norm:
        h = ops.norm(h, weights(f"{name}_post_norm.weight"), spec.norm_eps)
    return ops.add(chosen(x), h)


def _attention(
    spec: ModelSpec, weights: Weights, ops: Ops[T, P], layer: int, positions: P, chosen: Callable[[T], T], x: T
) -> T:
    """The layer's attention over x, appended to its cache; the chosen positions of its result [B, selected, D]."""
    attention = spec.attention(layer)
    q, k, v = ops.linears(x, [_linear(weights, layer, name, spec.qkv_bias) for name in ("q", "k", "v")])
    if attention.qk_norm != "none":
        q_groups, k_groups = (attention.heads, attention.kv_heads) if attention.qk_norm == "head" else (1, 1)
        q = ops.norm(q, weights(f"layers.{layer}.q_norm.weight"), spec.norm_eps, q_groups)
        k = ops.norm(k, weights(f"layers.{layer}.k_norm.weight"), spec.norm_eps, k_groups)
    mixed = chosen(ops.attention(q, k, v, attention, layer, positions))
    return ops.linears(mixed, [_linear(weights, layer, "o", spec.o_bias)])[0]


def _mlp(spec: ModelSpec, weights: Weights, ops: Ops[T, P], layer: int, x: T) -> T:
    gate, up = ops.linears(x, [_linear(weights, layer, name, spec.mlp_bias) for name in ("gate", "up")])
    hidden = ops.gated(gate, up, spec.activation)
    return ops.linears(hidden, [_linear(weights, layer, "down", spec.mlp_bias)])[0]


def _linear(weights: Weights, layer: int, name: str, bias: bool) -> Linear:
    weight = weights(f"layers.{layer}.{name}.weight")
    return Linear(weight, weights(f"layers.{layer}.{name}.bias") if bias else None)
