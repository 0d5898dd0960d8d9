"""What an architecture file says: a config becomes a ModelSpec, canonical names become the checkpoint's.

An architecture is one module of this folder, named after transformers' `model_type` (without `_text`) and after GGUF's
`general.architecture`. It has one function and holds no graph code:

    def describe(config: Config, max_context: int | None) -> Architecture

Most of it is shared, and is here: `decoder` fills in what nearly every family has, the file changes what is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgellm.converters.config import Config
from edgellm.converters.rotary import rotary
from edgellm.errors import UsageError
from edgellm.spec import Activation, AttentionSpec, HeadNorm, ModelSpec

DEFAULT_CONTEXT = 8192  # the KV cache of a longer one rarely fits an edge device; a user may ask for more

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

LAYER_TYPES = {"full_attention": "global", "sliding_attention": "local"}

# Canonical name in a layer -> the checkpoint's, without ".weight" or ".bias". Names that share one are its rows, in this order.
HF_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
HF_POST_NORMS = {"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
GGUF_NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attn_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attn_post_norm": "post_attention_norm",
    "mlp_post_norm": "post_ffw_norm",
}


@dataclass(frozen=True)
class Architecture:
    """A spec, and how its tensors are found.

    Attributes:
        hf_names, gguf_names: canonical to the checkpoint's names within a layer.
        hf_norm_shift: added to every norm of a transformers checkpoint (gemma stores gamma - 1; GGUF stores gamma).
        gguf_permuted: llama.cpp reorders the rows of Q and K of this family.
        residual_scale: multiplies what each sub-layer adds to the residual; folded into o and down.
    """

    spec: ModelSpec
    hf_names: Mapping[str, str] = field(default_factory=lambda: HF_NAMES)
    gguf_names: Mapping[str, str] = field(default_factory=lambda: GGUF_NAMES)
    hf_norm_shift: float = 0.0
    gguf_permuted: bool = False
    residual_scale: float = 1.0


def decoder(config: Config, max_context: int | None, *, window: int | None = None, qk_norm: HeadNorm = "none") -> ModelSpec:
    """The spec of a llama-like decoder: one kind of layer, pre-norms, biases and tying as the config says.

    Raises:
        SourceError: a field is missing, of the wrong type or impossible.
        UsageError: `max_context` is not positive, or more than the model has.
    """
    if config.has("num_experts") and config.integer("num_experts") > 1:
        raise config.error("mixtures of experts are not supported", "convert a dense model")
    activation = config.string("hidden_activation" if config.has("hidden_activation") else "hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise config.error(f"the activation {activation!r} is not supported")
    context = context_length(config, max_context)
    qkv_bias = config.flag("qkv_bias", config.flag("attention_bias"))
    return ModelSpec(
        architecture=config.architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        kinds={"global": windowed(attention(config, context, qk_norm=qk_norm), window, context)},
        layers=("global",) * config.integer("num_hidden_layers"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=ACTIVATIONS[activation],
        max_context=context,
        tied_head=config.flag("tie_word_embeddings"),
        qkv_bias=qkv_bias,
        o_bias=config.flag("o_bias", qkv_bias),
        mlp_bias=config.flag("mlp_bias"),
    )


def attention(
    config: Config,
    context: int,
    *,
    rope: Config | None = None,
    scale: float | None = None,
    qk_norm: HeadNorm = "none",
) -> AttentionSpec:
    """One kind of attention layer; `rope` is the config's and `scale` is 1 / sqrt(head_dim) unless given."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.error(f"{heads} attention heads cannot be shared by {kv_heads} key/value heads")
    if not config.has("head_dim") and hidden % heads:
        raise config.error(f"hidden_size {hidden} is not a multiple of {heads} heads, and there is no head_dim")
    head_dim = config.integer("head_dim", hidden // heads)
    if config.integer("v_head_dim", head_dim) != head_dim:
        raise config.error("values of another width than keys are not supported")
    return AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=1 / math.sqrt(head_dim) if scale is None else scale,
        qk_norm=qk_norm,
        rotary=rotary(rope or config.rope(), head_dim, context, config.integer("max_position_embeddings")),
    )


def windowed(kind: AttentionSpec, window: int | None, context: int) -> AttentionSpec:
    """`kind` with a window, unless that spans the whole context and so masks nothing."""
    return replace(kind, window=window if window is not None and window < context else None)


def layer_kinds(config: Config, local: Callable[[int], bool]) -> tuple[str, ...]:
    """ "local" or "global" for each layer: as the config's `layer_types` say, else by the family's rule."""
    count = config.integer("num_hidden_layers")
    if not config.has("layer_types"):
        return tuple("local" if local(layer) else "global" for layer in range(count))
    types = config.strings("layer_types")
    if len(types) != count or not set(types) <= LAYER_TYPES.keys():
        raise config.error(f"layer_types does not give one of {', '.join(LAYER_TYPES)} for each of {count} layers")
    return tuple(LAYER_TYPES[name] for name in types)


def with_kinds(spec: ModelSpec, layers: tuple[str, ...], kinds: Mapping[str, AttentionSpec]) -> ModelSpec:
    """`spec` with these layers, and of the kinds those that occur."""
    return replace(spec, layers=layers, kinds={name: kind for name, kind in kinds.items() if name in layers})


def context_length(config: Config, max_context: int | None) -> int:
    """Positions to prepare for: what was asked, or the model's own up to DEFAULT_CONTEXT."""
    own = config.integer("max_position_embeddings")
    if max_context is None:
        return min(own, DEFAULT_CONTEXT)
    if not 0 < max_context <= own:
        raise UsageError(
            f"max_context {max_context} is not between 1 and {own}, the model's own limit",
            where=config.where,
            fix=f"ask for at most {own}",
        )
    return max_context


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a spec: canonical name to shape, in the order of the decoder."""
    hidden, middle = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, hidden)}
    for layer in range(len(spec.layers)):
        kind = spec.attention(layer)
        q, kv = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
        norms: dict[str, int] = {}
        if spec.pre_norm:
            norms |= {"attn_norm": hidden, "mlp_norm": hidden}
        if spec.post_norm:
            norms |= {"attn_post_norm": hidden, "mlp_post_norm": hidden}
        if kind.qk_norm != "none":
            whole = kind.qk_norm == "width"
            norms |= {"q_norm": q if whole else kind.head_dim, "k_norm": kv if whole else kind.head_dim}
        linears = {
            "q": (q, hidden, spec.qkv_bias),
            "k": (kv, hidden, spec.qkv_bias),
            "v": (kv, hidden, spec.qkv_bias),
            "o": (hidden, q, spec.o_bias),
            "gate": (middle, hidden, spec.mlp_bias),
            "up": (middle, hidden, spec.mlp_bias),
            "down": (hidden, middle, spec.mlp_bias),
        }
        shapes |= {f"layers.{layer}.{name}.weight": (width,) for name, width in norms.items()}
        for name, (rows, columns, bias) in linears.items():
            shapes[f"layers.{layer}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"layers.{layer}.{name}.bias"] = (rows,)
    shapes["norm.weight"] = (hidden,)
    if spec.final_linear:
        shapes["final.weight"] = (hidden, hidden)
    if not spec.tied_head:
        shapes["head.weight"] = (spec.vocab_size, hidden)
    return shapes
