"""Bad configs and checkpoints: one line that names the field or the tensors, whatever is wrong."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.converters.architectures import available, describe
from edgellm.errors import EdgeError, SourceError, UsageError
from edgellm.spec import ModelSpec
from tests.tiny_models import LONGROPE, VARIANTS, MemoryCheckpoint, in_style_of_transformers_4, tiny

ROPE = {"rope_theta": 10000.0}


def described(architecture: str = "llama", variant: str = "plain", max_context: int | None = None, **changes: Any) -> ModelSpec:
    _, config, state = tiny(architecture, variant)
    return describe(MemoryCheckpoint({**config, **changes}, state), max_context)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; supported are gemma2, gemma3"),
        ({"model_type": "base"}, "'base' is not supported"),
        ({"model_type": "../llama"}, "'../llama' is not supported"),
        ({"hidden_size": None}, "the config has no hidden_size"),
        ({"hidden_size": 0}, "hidden_size is 0, not between 1 and"),
        ({"hidden_size": -64}, "hidden_size is -64, not between 1 and"),
        ({"hidden_size": "64"}, "hidden_size is '64', not an integer"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5, not an integer"),
        ({"hidden_size": True}, "hidden_size is True, not an integer"),
        ({"hidden_size": [1] * 1000}, "hidden_size is [1, 1, 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not between 1 and 1024"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}, "64 is not a multiple of 3 heads"),
        ({"num_attention_heads": 3}, "3 attention heads cannot be shared by 2"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"hidden_act": "relu6"}, "the activation 'relu6' is not supported"),
        ({"hidden_act": 3}, "hidden_act is 3, not a string"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes', not true or false"),
        ({"rope_parameters": 5}, "rope_parameters is 5, not an object"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type 'spiral' is not supported"),
        ({"rope_parameters": {**ROPE, "rope_type": "linear"}}, "rope_parameters: the config has no factor"),
        ({"rope_parameters": {**ROPE, "rope_type": "linear", "factor": -1}}, "factor is -1"),
        ({"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 10**400}}, "factor is 1000"),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": 1.5}}, "24 rotated channels do not fit a head of 16"),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": 0.2}}, "3 rotated channels do not fit"),
        ({"rope_parameters": {**LONGROPE, "short_factor": [1.0]}}, "short_factor is [1.0], not a list of 8 numbers"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}, "rotary parameters"),
        ({"tie_word_embeddings": True, "vocab_size": 132}, "model.embed_tokens.weight is [131, 64], not [132, 64]"),
        ({"num_experts": 8}, "mixtures of experts"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], message: str) -> None:
    _, config, state = tiny("llama")
    changed = {**config, **changes}
    with pytest.raises(SourceError) as raised:
        describe(MemoryCheckpoint(changed, state))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 400


def test_layer_types_have_to_fit() -> None:
    with pytest.raises(SourceError, match="layer_types does not give one of"):
        described("gemma2", layer_types=["full_attention"])
    with pytest.raises(SourceError, match="layer_types does not give one of"):
        described("gemma2", layer_types=["chunked_attention"] * 3)
    with pytest.raises(SourceError, match="not a list of strings"):
        described("gemma2", layer_types=[1, 2, 3])


def test_a_gemma_that_looks_both_ways_is_refused() -> None:
    with pytest.raises(SourceError, match="bidirectional"):
        described("gemma3", use_bidirectional_attention=True)


def test_missing_tensors_are_all_named_at_once() -> None:
    _, config, state = tiny("llama")
    gone = {"lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"}
    with pytest.raises(SourceError) as raised:
        describe(MemoryCheckpoint(config, {name: value for name, value in state.items() if name not in gone}))
    assert "3 tensors are missing" in str(raised.value)
    assert all(name in str(raised.value) for name in gone)
    with pytest.raises(SourceError, match=r"30 tensors are missing: .* and 18 more"):
        describe(MemoryCheckpoint(config, {}))


def test_wrong_shapes_are_all_named_at_once() -> None:
    _, config, state = tiny("phi3")
    bad = {
        "model.norm.weight": np.ones(63, np.float32),
        "model.layers.0.self_attn.qkv_proj.weight": np.ones((127, 64), np.float32),
        "model.layers.2.mlp.gate_up_proj.weight": np.ones((192, 64, 1), np.float32),
    }
    with pytest.raises(SourceError) as raised:
        describe(MemoryCheckpoint(config, {**state, **bad}))
    assert "3 tensors have the wrong shape" in str(raised.value)
    assert "model.layers.0.self_attn.qkv_proj.weight is [127, 64], not [128, 64]" in str(raised.value)


def test_the_context_is_capped() -> None:
    assert described().max_context == 512
    assert described(max_position_embeddings=131072).max_context == 8192
    assert described(max_position_embeddings=131072, max_context=100000).max_context == 100000
    assert described(max_context=100).max_context == 100
    for bad in (0, -1, 513):
        with pytest.raises(UsageError, match="not between 1 and 512"):
            described(max_context=bad)


def test_longrope_takes_its_factors_by_the_context_asked_for() -> None:
    def frequencies(max_context: int) -> tuple[float, ...]:
        rotary = described("phi3", "longrope_long", max_context).attention(0).rotary
        assert rotary is not None
        return rotary.frequencies

    assert frequencies(8) == frequencies(5)
    assert frequencies(9) == frequencies(512)
    ratio = np.array(frequencies(8)) / np.array(frequencies(9))
    np.testing.assert_allclose(ratio, np.array(LONGROPE["long_factor"]) / np.array(LONGROPE["short_factor"]), rtol=1e-5)


def test_a_window_as_wide_as_the_context_is_no_window() -> None:
    assert described("mistral").attention(0).window == 7
    assert described("mistral", max_context=7).attention(0).window is None


@pytest.mark.parametrize("style", ["new", "old"])
@pytest.mark.parametrize("root", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_gemma(root: str, style: str) -> None:
    _, config, state = tiny("gemma3", "as_published")
    text = config if style == "new" else in_style_of_transformers_4(config)
    renamed = {name.replace("model.", root, 1): values for name, values in state.items()}
    nested = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 7}}
    spec, tensor = describe(MemoryCheckpoint(nested, renamed))
    alone, alone_tensor = describe(MemoryCheckpoint(config, state))
    assert spec == alone
    name = "layers.6.q_norm.weight"
    np.testing.assert_array_equal(tensor(name).array(), alone_tensor(name).array())


def test_a_sparse_multimodal_gemma_config_takes_transformers_defaults() -> None:
    from transformers import Gemma3TextConfig

    from edgellm.converters.architectures import gemma3
    from edgellm.converters.config import Config

    # the text part of a published 4B config.json names only these
    sparse = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    ours = gemma3.describe(Config(sparse, "4b", "hf", "gemma3"), 131072).spec
    theirs = Gemma3TextConfig(**sparse)
    kind = ours.kinds["global"]
    assert (ours.vocab_size, kind.heads, kind.kv_heads) == (theirs.vocab_size, 8, 4)
    assert kind.head_dim == theirs.head_dim
    assert ours.max_context == theirs.max_position_embeddings
    assert [name == "local" for name in ours.layers] == [name == "sliding_attention" for name in theirs.layer_types or []]
    assert kind.rotary is not None
    assert kind.rotary.frequencies[0] == 1 / 8
    local = ours.kinds["local"].rotary
    assert local is not None
    assert local.frequencies[1] == pytest.approx(10_000 ** (-2 / 256))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 9), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention"]), st.integers(-1, 9), max_size=3),
)
FIELDS = ("num_hidden_layers", "hidden_size", "head_dim", "layer_types", "rope_parameters", "sliding_window", "text_config")
ROPE_FIELDS = ("rope_type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings", "beta_fast")


@settings(max_examples=200, deadline=None)
@given(
    architecture=st.sampled_from(sorted(VARIANTS)),
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
    rope=st.dictionaries(st.sampled_from(ROPE_FIELDS), VALUES, max_size=3),
    rope_type=st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope"]),
)
def test_no_config_gets_past_an_edge_error(
    architecture: str, changes: dict[str, Any], rope: dict[str, Any], rope_type: str
) -> None:
    _, config, state = tiny(architecture)
    changed = {**config, "rope_scaling": {"rope_type": rope_type, **rope}, "rope_parameters": None, **changes}
    with contextlib.suppress(EdgeError):
        describe(MemoryCheckpoint(changed, state))


def test_architectures_are_the_files_of_the_folder() -> None:
    assert "llama" in available()
    assert not {"base", "__init__", "__pycache__"} & set(available())
