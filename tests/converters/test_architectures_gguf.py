"""The same tiny models through a GGUF file, written with gguf-py and its name tables as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.converters.architectures import describe
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.converters.config import Config
from edgellm.converters.numpy_ops import ReferenceModel
from edgellm.converters.weights import Weight
from edgellm.errors import SourceError
from tests.tiny_gguf import write_gguf
from tests.tiny_models import MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(9).integers(3, 131, 40)

CASES = [
    ("llama", "plain"),
    ("llama", "one_kv_head"),
    ("llama", "biases"),
    ("llama", "llama3_rope"),
    ("llama", "linear_rope"),
    ("llama", "yarn_rope"),
    ("mistral", "plain"),
    ("qwen2", "plain"),
    ("qwen3", "plain"),
    ("gemma2", "as_published"),
    ("gemma3", "as_published"),
    ("phi3", "plain"),
    ("phi3", "partial_rotary"),
    ("phi3", "longrope_long"),
    ("granite", "plain"),
    ("granite", "biases"),
    ("olmo2", "plain"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_gguf_gives_the_logits_of_transformers(architecture: str, variant: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, architecture, variant)
    with open_checkpoint(path) as checkpoint:
        spec, tensor = describe(checkpoint)
        ours = ReferenceModel(spec, lambda name: Weight(name, tensor(name))).logits(IDS)
    if variant == "biases" and architecture == "llama":  # the tiny one uses gelu, which no GGUF can say
        assert spec.activation == "silu"
        assert spec.qkv_bias
        assert spec.o_bias
        assert spec.mlp_bias
        return
    np.testing.assert_allclose(ours, torch_logits(tiny(architecture, variant).model, IDS), rtol=0, atol=1e-4)


# Published sizes of the 27B models, whose score scale differs from 1 / sqrt(head_dim) and stands only in config.json.
GEMMA_27B = {
    "gemma2": {"hidden": 4608, "heads": 32, "layers": 46, "query_pre_attn_scalar": 144},
    "gemma3": {"hidden": 5376, "heads": 32, "layers": 62, "query_pre_attn_scalar": 168},
}


@pytest.mark.parametrize("name", GEMMA_27B)
def test_a_gemma_27b_has_its_own_score_scale(name: str) -> None:
    from importlib import import_module

    published = GEMMA_27B[name]
    sizes = {
        "vocab_size": 256000,
        "hidden_size": published["hidden"],
        "intermediate_size": 1024,
        "num_hidden_layers": published["layers"],
        "num_attention_heads": published["heads"],
        "num_key_value_heads": 16,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    }
    module = import_module(f"edgellm.converters.architectures.{name}")
    spec = module.describe(Config(sizes, "27b", "gguf", name), None).spec
    assert spec.attention(0).scale == pytest.approx(published["query_pre_attn_scalar"] ** -0.5)
    smaller = module.describe(Config({**sizes, "num_hidden_layers": 34}, "9b", "gguf", name), None).spec
    assert smaller.attention(0).scale == pytest.approx(128**-0.5)


def gguf_llama(**changes: Any) -> MemoryCheckpoint:
    config = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    config |= {f"llama.{name}": value for name, value in changes.items()}
    shapes = {
        "token_embd": (11, 8),
        "output_norm": (8,),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
        **{f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}": (16, 8) for part in ("gate", "up")},
        "blk.0.ffn_down": (8, 16),
    }
    state = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    return MemoryCheckpoint(config, state, naming="gguf")


def test_a_per_layer_array_of_one_value_is_that_value() -> None:
    changes = {"attention.head_count_kv": np.array([2, 2], np.int32), "feed_forward_length": np.array([16], np.int32)}
    spec, _ = describe(gguf_llama(**changes))
    assert spec.attention(0).kv_heads == 2
    assert spec.intermediate_size == 16


def test_no_scaling_and_a_window_pattern_are_understood() -> None:
    none = {"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.freq_base": 500.0}
    rotary = describe(gguf_llama(**none))[0].attention(0).rotary
    assert rotary is not None
    assert rotary.frequencies == pytest.approx([1.0, 500**-0.5])
    pattern = {"gemma3.attention.sliding_window_pattern": np.array([True, False, True])}
    values = Config.of(MemoryCheckpoint({"general.architecture": "gemma3", **pattern}, {}, naming="gguf"))
    assert values.strings("layer_types") == ("sliding_attention", "full_attention", "sliding_attention")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.head_count_kv": np.array([1, 2], np.int32)}, "num_key_value_heads"),
        ({"attention.head_count": "two"}, "num_attention_heads is 'two', not an integer"),
        ({"expert_count": 8}, "mixtures of experts"),
        ({"attention.value_length": 3}, "another width"),
        ({"rope.dimension_count": 5}, "rotated channels"),
        ({"rope.scaling.type": "spiral"}, "rope_type 'spiral'"),
        ({"rope.freq_base": float("nan")}, "rope_theta"),
        ({"block_count": 2}, "9 tensors are missing: blk.1.attn_k.weight"),
        ({"block_count": 10**9}, "num_hidden_layers is 1000000000"),
        ({"block_count": 0}, "num_hidden_layers is 0"),
        ({"embedding_length": 16}, "token_embd.weight is \\[11, 8\\], not \\[11, 16\\]"),
    ],
)
def test_bad_metadata_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        describe(gguf_llama(**changes))


def test_olmo_3_in_a_gguf_is_refused() -> None:
    _, config, state = tiny("olmo2", "plain")
    checkpoint = MemoryCheckpoint({"olmo2.attention.sliding_window": 8}, state, naming="gguf", architecture="olmo2")
    checkpoint.config = {**checkpoint.config, "general.architecture": "olmo2", "olmo2.block_count": config["num_hidden_layers"]}
    with pytest.raises(SourceError, match="OLMo 3"):
        describe(checkpoint)
