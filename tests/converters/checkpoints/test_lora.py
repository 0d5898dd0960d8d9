"""Adapters merged on the way, against transformers + peft on tiny models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, models

from edgellm.converters.checkpoints import open_checkpoint
from edgellm.errors import SourceError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def base_model(folder: Path, family: str = "Llama", **changes: Any) -> Path:
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, "tie_word_embeddings": False, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.float32)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def train(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter whose every tensor is random, saved by peft."""
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(str(folder))
    return folder


def adapted(base: Path, adapter: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter).eval()


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state: dict[str, torch.Tensor] = adapted(base, adapter).merge_and_unload().state_dict()
    return state


def merged_by_us(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """Every tensor, read in odd slices."""
    with open_checkpoint(base, adapter=adapter) as checkpoint:
        assert checkpoint.provenance.adapter == adapter.name
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
        return {
            name: np.concatenate([tensor.rows(i, min(i + 7, tensor.shape[0])) for i in range(0, tensor.shape[0], 7)])
            for name, tensor in tensors.items()
        }


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("Llama", {}, {"r": 4, "lora_alpha": 6, "target_modules": LINEARS}),
    "two modules": ("Qwen3", {"head_dim": 8}, {"r": 3, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "rsLoRA": ("Llama", {}, {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": LINEARS}),
    "ranks and alphas": (
        "Llama",
        {},
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": LINEARS,
            "rank_pattern": {
                "layers.0": 7,
                "self_attn.q": 7,
                "q_proj": 2,
                "layers.1.self_attn.k_proj": 6,
                r".*\.0\.mlp\..*": 5,
                "proj": 9,
            },
            "alpha_pattern": {"layers.0.self_attn.q_proj": 30, "^model.layers.1.mlp.up_proj": 3, "o_proj|v_proj": 11},
        },
    ),
    "rsLoRA ranks": (
        "Llama",
        {},
        {"r": 4, "use_rslora": True, "target_modules": LINEARS, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}},
    ),
    "fused phi3": ("Phi3", {}, {"r": 4, "lora_alpha": 6, "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "head and embedding saved": (
        "Llama",
        {},
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    ),
    "embedding and head": ("Llama", {}, {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "biases of the adapter": (
        "Qwen2",
        {},
        {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": ["q_proj", "k_proj"]},
    ),
    "trained biases": ("Qwen2", {}, {"r": 4, "bias": "all", "target_modules": ["q_proj", "o_proj"]}),
    "trained lora biases": ("Qwen2", {}, {"r": 4, "bias": "lora_only", "target_modules": ["q_proj"]}),
    "DoRA": ("Llama", {}, {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": LINEARS}),
    "fan_in_fan_out": ("Llama", {}, {"r": 4, "fan_in_fan_out": True, "target_modules": ["q_proj", "down_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_merge_and_unload(tmp_path: Path, case: str) -> None:
    family, changes, options = CASES[case]
    base = base_model(tmp_path / "base", family, **changes)
    adapter = train(base, tmp_path / "adapter", **options)
    expected, ours = merged_by_peft(base, adapter), merged_by_us(base, adapter)
    assert ours.keys() == expected.keys()
    unmerged = transformers.AutoModelForCausalLM.from_pretrained(base).state_dict()
    changed = 0
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value.numpy(), rtol=1e-6, atol=1e-6, err_msg=name)
        changed += not torch.allclose(value, unmerged[name], atol=1e-3)
    assert changed >= len(options["target_modules"])


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_a_tied_head_and_embedding_become_what_they_were_in_training(tmp_path: Path, options: dict[str, Any]) -> None:
    base = base_model(tmp_path / "base", tie_word_embeddings=True)
    assert "lm_head.weight" not in safetensors.torch.load_file(base / "model.safetensors")
    adapter = train(base, tmp_path / "adapter", r=4, **options)
    model = adapted(base, adapter)
    with torch.no_grad():
        embedding = model.get_input_embeddings()(torch.arange(40)).numpy()
        head = model.get_output_embeddings()(torch.eye(32)).T.numpy()
    ours = merged_by_us(base, adapter)
    np.testing.assert_allclose(ours["model.embed_tokens.weight"], embedding, rtol=1e-6, atol=1e-6)
    with open_checkpoint(base, adapter=adapter) as checkpoint:
        tied = checkpoint.config["tie_word_embeddings"]
    assert tied == np.array_equal(head, embedding)
    if tied:
        assert "lm_head.weight" not in ours
    else:
        np.testing.assert_allclose(ours["lm_head.weight"], head, rtol=1e-6, atol=1e-6)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base model and a plain adapter for it."""
    base = base_model(tmp_path / "base")
    return base, train(base, tmp_path / "adapter", r=4, target_modules=["q_proj", "v_proj"])


def change(adapter: Path, **values: object) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3' is not LORA"),
        ({"use_qalora": True}, "use_qalora is not supported"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is not supported"),
        ({"target_parameters": ["x"]}, "target_parameters is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"init_lora_weights": "olora"}, "changes the base model"),
        ({"use_dora": True}, "use_dora does not fit"),
        ({"r": 0}, "r is not a positive number"),
        ({"r": 8}, "do not fit rank 8"),
        ({"r": "4"}, "r is not"),
        ({"lora_alpha": None}, "lora_alpha is not"),
        ({"lora_alpha": float("nan")}, "lora_alpha is not"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is not"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern is not"),
        ({"alpha_pattern": {"(.*a)+$": 3}}, "alpha_pattern is not"),
        ({"rank_pattern": {"v_proj": 3}}, "do not fit rank 3"),
    ],
)
def test_what_would_merge_wrongly_is_refused(pair: tuple[Path, Path], values: dict[str, object], message: str) -> None:
    base, adapter = pair
    change(adapter, **values)
    with pytest.raises(SourceError, match=message) as raised:
        open_checkpoint(base, adapter=adapter)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (("q_proj", "query"), r"changes 'model\.layers\.0\.self_attn\.query\.weight', which the model does not have"),
        (("layers.1.", "layers.7."), "which the model does not have"),
        (("lora_A.weight", "lora_C.weight"), "of an unknown kind"),
        (("q_proj.lora_A", "o_proj.lora_A"), "only one of A and B"),
        (("lora_B.weight", "lora_B.extra.weight"), "of an unknown kind"),
        (("self_attn.v_proj.lora_", "mlp.down_proj.lora_"), "do not fit"),
    ],
)
def test_no_tensor_of_an_adapter_is_left_out(pair: tuple[Path, Path], rename: tuple[str, str], message: str) -> None:
    base, adapter = pair
    tensors = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace(*rename): value for name, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    safetensors.torch.save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=message):
        open_checkpoint(base, adapter=adapter)


def test_a_resized_embedding_an_empty_adapter_and_a_missing_one_are_refused(pair: tuple[Path, Path]) -> None:
    base, adapter = pair
    file = adapter / "adapter_model.safetensors"
    safetensors.torch.save_file({"base_model.model.model.embed_tokens.weight": torch.zeros(41, 32)}, file)
    with pytest.raises(SourceError, match=r"\[41, 32\] in the adapter and \[40, 32\] in the model"):
        open_checkpoint(base, adapter=adapter)
    safetensors.torch.save_file({}, file)
    with pytest.raises(SourceError, match="no tensors"):
        open_checkpoint(base, adapter=adapter)
    file.unlink()
    with pytest.raises(SourceError, match=r"no adapter_model\.safetensors"):
        open_checkpoint(base, adapter=adapter)
    (adapter / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(SourceError, match="pickled"):
        open_checkpoint(base, adapter=adapter)
    with pytest.raises(SourceError, match="no such adapter folder"):
        open_checkpoint(base, adapter=adapter / "none")
    with pytest.raises(SourceError, match="not a PEFT adapter"):
        open_checkpoint(base, adapter=base)


def test_a_gguf_is_refused_with_the_cure(pair: tuple[Path, Path], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="cannot be merged into a GGUF file; give the original model"):
        open_checkpoint(tmp_path / "x.gguf", adapter=pair[1])


def test_a_fine_tunes_own_tokenizer_and_template_are_taken(pair: tuple[Path, Path]) -> None:
    base, adapter = pair
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "do_sample": true, "temperature": 0.5}')
    (base / "chat_template.jinja").write_text("base")
    (base / "LICENSE").write_text("base")
    (adapter / "LICENSE").write_text("adapter")
    with open_checkpoint(base, adapter=adapter) as checkpoint:
        assert checkpoint.text().chat_template == "base"
        assert checkpoint.licenses() == {"LICENSE": b"base", "adapter-LICENSE": b"adapter"}
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<end>": 3}, merges=[("a", "b")]))
    tokenizer.save(str(adapter / "tokenizer.json"))
    end = "<end>"
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "chat_template": "own"}))
    with open_checkpoint(base, adapter=adapter) as checkpoint:
        text = checkpoint.text()
    assert text.chat_template == "own"
    assert text.eos_ids == (3, 2)
    assert text.generation == {"temperature": 0.5}
    assert Tokenizer.from_str(text.tokenizer.decode()).encode("ab<end>").ids == [2, 3]
