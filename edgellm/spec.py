"""ModelSpec: what a decoder-only transformer is, in numbers, whatever family it comes from.

A spec is frozen and holds no weights. Converters fill it from a checkpoint's config, back ends read it to
build a graph, and the bundle carries it to the device, where it sizes the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
MaskKind = Literal["causal", "full", "cross"]
HeadNorm = Literal["none", "head", "width"]


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding over the first `2 * len(frequencies)` channels of each head.

    Channel i is paired with channel i + len(frequencies) (the "half" layout of transformers).

    Attributes:
        frequencies: radians per position, float32 values, fastest first; scaling (llama3, linear, longrope)
            is already applied.
        factor: multiplies both cos and sin (longrope and yarn scale attention so); 1 elsewhere.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0

    @property
    def dims(self) -> int:
        """How many channels of a head are rotated."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True)
class AttentionSpec:
    """One kind of attention layer.

    Attributes:
        heads, kv_heads, head_dim: query heads, key/value heads, channels per head.
        scale: multiplies q·k before the softmax.
        window: a position sees itself and the `window - 1` before it; None sees all.
        softcap: scores become `softcap * tanh(scores / softcap)`; None leaves them.
        qk_norm: RMS norm of q and k, per head or over the whole width, before rotation.
        rotary: None for attention without rotary positions.
        mask: causal over the cache, full (every query sees every key), or cross (keys from elsewhere).
        cached: whether keys and values of earlier calls are kept.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    qk_norm: HeadNorm = "none"
    rotary: Rotary | None = None
    mask: MaskKind = "causal"
    cached: bool = True


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer with gated MLPs and RMS norms.

    Attributes:
        architecture: the architecture file that made the spec ("llama", "gemma3", ...).
        kinds: attention kinds by name; `layers[i]` names the kind of layer i.
        pre_norm, post_norm: whether each sub-layer's input, and its output before the residual add, is normed.
        norm_eps: epsilon of every RMS norm.
        qkv_bias, o_bias, mlp_bias: which linears carry a bias.
        tied_head: the head uses the embedding's table.
        final_linear: what comes out of the final norm is x + x @ final.weight.T before it goes into the head.
        embed_scale: multiplies embeddings; logit_scale multiplies logits; logit_softcap as in AttentionSpec.
        max_context: positions the model (and the bundle) may use.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    kinds: Mapping[str, AttentionSpec]
    layers: tuple[str, ...]
    norm_eps: float
    activation: Activation
    max_context: int
    tied_head: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    final_linear: bool = False

    def attention(self, layer: int) -> AttentionSpec:
        """The attention of one layer."""
        return self.kinds[self.layers[layer]]
