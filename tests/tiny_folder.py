"""A tiny random llama as a Hugging Face folder: safetensors, a byte-level tokenizer, a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ("<|pad|>", "<|start|>", "<|end|>")


def write(folder: Path, *, context: int = 4096, template: str | None = CHAT_TEMPLATE) -> Path:
    """Write the folder; the model is seeded and never says its end-of-text token, so lengths are what a test asks for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))

    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        model.lm_head.weight[: len(SPECIAL)] *= 0.01

    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    return folder


def write_coarse(folder: Path) -> Path:
    """The same, of which 8 bits lose much: in every block of 32 one input is small, and its weights large to match."""
    from safetensors.numpy import load_file, save_file

    write(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, values in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            values[:, [5, 37]] *= 1000
        if name.endswith("layernorm.weight"):
            values[[5, 37]] /= 1000
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_loud(folder: Path, layer: int = 1, factor: float = 200) -> Path:
    """The same function, with inputs of one layer's down-projection of which 8 bits in blocks know little.

    In every block of 32 one channel is made so many times as loud, and its weights as small.
    """
    from safetensors.numpy import load_file, save_file

    write(folder)
    tensors = load_file(folder / "model.safetensors")
    prefix, loud = f"model.layers.{layer}.mlp", slice(5, None, 32)
    tensors[f"{prefix}.up_proj.weight"][loud] *= factor
    tensors[f"{prefix}.down_proj.weight"][:, loud] /= factor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
