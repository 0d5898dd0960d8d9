"""The safetensors reader against the safetensors package, torch and transformers."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as kinds
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from edgellm.benchmarks.peers import hf_folder
from edgellm.converters import architectures
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.checkpoints.safetensors import SafetensorsFile
from edgellm.errors import SourceError

UNKNOWN = "<unk>"
VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "Ġ": 6, "c": 7, "<|end|>": 8}


def save_tokenizer(folder: Path, *, bos: bool = False, **settings: Any) -> Tokenizer:
    """A small byte-level tokenizer.json with its tokenizer_config.json."""
    tokenizer = Tokenizer(kinds.BPE(vocab=VOCAB, merges=[("a", "b")], unk_token=UNKNOWN))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    write(folder / "tokenizer_config.json", config)
    return tokenizer


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama as transformers saves it, with a tokenizer."""
    return make_folder(tmp_path / "tiny")


def make_folder(path: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(path, max_shard_size=shard)
    save_tokenizer(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_equals_the_safetensors_package(tmp_path: Path, dtype: torch.dtype, shard: str) -> None:
    path = make_folder(tmp_path / "model", dtype, shard)
    shards = sorted(path.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard == "20KB")
    expected = {name: value for file in shards for name, value in safetensors.torch.load_file(file).items()}
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names() == set(expected)
        assert checkpoint.naming == "hf"
        assert checkpoint.architecture == "llama"
        assert checkpoint.config["hidden_size"] == 32
        for name, value in expected.items():
            tensor = checkpoint.tensor(name)
            assert tensor.shape == tuple(value.shape)
            np.testing.assert_array_equal(tensor.array(), value.to(torch.float32).numpy())
            rows = tensor.rows(3, 7)
            np.testing.assert_array_equal(rows, value.to(torch.float32).numpy()[3:7])
            rows += 1  # the caller may write
            np.testing.assert_array_equal(tensor.rows(3, 7), value.to(torch.float32).numpy()[3:7])


def test_every_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(torch.bfloat16)
    safetensors.torch.save_file({"x": patterns}, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        ours = file.tensor("x").array()
    np.testing.assert_array_equal(ours.view(np.uint32), patterns.to(torch.float32).view(torch.int32).numpy().view(np.uint32))


def test_scalars_empty_tensors_and_odd_offsets(tmp_path: Path) -> None:
    values = {"s": torch.tensor(2.5), "none": torch.zeros(0, 3), "b": torch.ones(3, dtype=torch.uint8), "x": torch.ones(2, 2)}
    safetensors.torch.save_file(values, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.tensor("s").array().tolist() == [2.5]
        assert file.tensor("none").array().shape == (0, 3)
        assert file.tensor("x").array().tolist() == [[1, 1], [1, 1]]
        with pytest.raises(SourceError, match="stored as U8"):
            file.tensor("b")


def test_data_need_not_be_aligned(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert len(header) % 4
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + np.array([1.5, -2], "<f4").tobytes())
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.tensor("x").array().tolist() == [1.5, -2]


def test_threads_read_at_once(tmp_path: Path) -> None:
    value = torch.randn(512, 64).to(torch.bfloat16)
    safetensors.torch.save_file({"x": value}, tmp_path / "x.safetensors")
    wrong: list[int] = []
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        tensor = file.tensor("x")

        def read(seed: int) -> None:
            starts = np.random.default_rng(seed).integers(0, 500, 200).tolist()
            wrong.extend(i for i in starts if not np.array_equal(tensor.rows(i, i + 12), value[i : i + 12].float().numpy()))

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def index_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return value


@pytest.mark.skipif(sys.platform == "win32", reason="a timer's signal is POSIX")
def test_a_signal_while_it_reads_comes_out_as_it_is(tmp_path: Path) -> None:
    """What ends the program holds views of the mapping in its frames, and closing must not put an error in its place."""
    safetensors.torch.save_file({"x": torch.zeros(2048, 2048)}, tmp_path / "x.safetensors")

    def end(*_: object) -> None:
        raise SystemExit(143)

    def read_on() -> None:
        with SafetensorsFile(tmp_path / "x.safetensors") as file:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            while True:
                file.tensor("x").rows(0, 2048)

    before = signal.signal(signal.SIGALRM, end)
    try:
        with pytest.raises(SystemExit, match="143"):
            read_on()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "C:x.safetensors", "..\\x.safetensors", 3, "x.bin"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    folder = make_folder(tmp_path / "model", shard="20KB")
    index = index_of(folder)
    index["weight_map"]["lm_head.weight"] = name
    write(folder / "model.safetensors.index.json", index)
    with pytest.raises(SourceError, match="not a file name of this folder"):
        open_checkpoint(folder)


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", shard="20KB")
    index = index_of(folder)
    index["weight_map"]["extra.weight"] = index["weight_map"]["lm_head.weight"]
    write(folder / "model.safetensors.index.json", index)
    with pytest.raises(SourceError, match=r"no tensor 'extra\.weight'"):
        open_checkpoint(folder)
    del index["weight_map"]["extra.weight"]
    write(folder / "model.safetensors.index.json", index)
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=r"no tensor 'nothing\.weight'"):
        checkpoint.tensor("nothing.weight")
    shard = index["weight_map"]["lm_head.weight"]
    (folder / shard).unlink()
    with pytest.raises(SourceError, match=f"{shard}: the weight file is missing"):
        open_checkpoint(folder)


def test_pickled_quantized_and_absent_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for method in ("fp8", "bitsandbytes", "hub", "..gptq"):
        write(folder / "config.json", {**config, "quantization_config": {"quant_method": method}})
        with pytest.raises(SourceError, match=rf"already quantized \({method}\).*original"):
            open_checkpoint(folder)
    write(folder / "config.json", config)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(SourceError, match=r"only other\.safetensors; rename"):
        open_checkpoint(folder)
    (folder / "other.safetensors").unlink()
    with pytest.raises(SourceError, match="no weights"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SourceError, match=r"pickled.*save_pretrained"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{" * 100, "JSON"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("[]", "not a JSON object"),
        ("{}", "model_type"),
        ('{"model_type": "a", "model_type": "b"}', "twice"),
        ('{"model_type": 1}', "model_type"),
    ],
)
def test_a_bad_config_is_one_line(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(SourceError, match=message) as raised:
        open_checkpoint(folder)
    assert "\n" not in str(raised.value)


# Text -----------------------------------------------------------------------------------------------------------------

SAMPLES = ["ab", "a b</s>ab", "<|end|>ab", "", "cab <s>", "x<new>ab"]


def ids_by_transformers(folder: Path, text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return ids


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("add_bos", [None, False, True])
def test_beginning_of_text_is_added_where_transformers_adds_it(folder: Path, bos: bool, add_bos: bool | None) -> None:
    save_tokenizer(folder, bos=bos, **({} if add_bos is None else {"add_bos_token": add_bos}))
    with open_checkpoint(folder) as checkpoint:
        text = checkpoint.text()
    assert text.tokenizer == (folder / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_str(text.tokenizer.decode())
    assert [tokenizer.encode(sample).ids for sample in SAMPLES] == [ids_by_transformers(folder, sample) for sample in SAMPLES]
    assert (tokenizer.encode("ab").ids[0] == 1) == bos


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": "<|end|>"},
        {"eos_token": {"content": "<|end|>", "lstrip": False, "normalized": False, "special": True, "__type": "AddedToken"}},
        {"pad_token": "<new>"},
        {"additional_special_tokens": ["<new>", "<|end|>"]},
        {"added_tokens_decoder": {"9": {"content": "<new>", "special": False, "normalized": False}}},
        {"added_tokens_decoder": {"10": {"content": "c<", "special": True}, "9": {"content": "<new>", "special": True}}},
    ],
)
def test_special_tokens_that_only_the_config_names_are_found(folder: Path, settings: dict[str, Any]) -> None:
    save_tokenizer(folder, **settings)
    with open_checkpoint(folder) as checkpoint:
        text = checkpoint.text()
    tokenizer = Tokenizer.from_str(text.tokenizer.decode())
    assert [tokenizer.encode(sample).ids for sample in SAMPLES] == [ids_by_transformers(folder, sample) for sample in SAMPLES]
    oracle = AutoTokenizer.from_pretrained(folder).backend_tokenizer

    def added(tokenizer: Tokenizer) -> dict[int, tuple[str, bool]]:
        return {index: (token.content, token.special) for index, token in tokenizer.get_added_tokens_decoder().items()}

    assert added(tokenizer) == added(oracle)


def test_a_plain_added_token_becomes_special_where_the_config_names_it(folder: Path) -> None:
    end = "<|end|>"
    tokenizer = save_tokenizer(folder, eos_token=end)
    tokenizer.add_tokens([end])
    tokenizer.save(str(folder / "tokenizer.json"))
    with open_checkpoint(folder) as checkpoint:
        ours = Tokenizer.from_str(checkpoint.text().tokenizer.decode())
    assert tokenizer.decode([5, 8]) != "ab"
    assert ours.decode([5, 8]) == "ab" == AutoTokenizer.from_pretrained(folder).decode([5, 8], skip_special_tokens=True)


def test_truncation_and_padding_of_training_are_left_out(folder: Path) -> None:
    tokenizer = save_tokenizer(folder)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    with open_checkpoint(folder) as checkpoint:
        ours = Tokenizer.from_str(checkpoint.text().tokenizer.decode())
    assert ours.encode("ab" * 20).ids == [5] * 20 == ids_by_transformers(folder, "ab" * 20)


def test_ids_and_sampling_are_what_the_authors_set(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "eos_token_id": 8, "bos_token_id": 1, "pad_token_id": -1})
    write(
        folder / "generation_config.json",
        {
            "eos_token_id": [7, 8],
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "min_p": None,
            "repetition_penalty": 1.1,
            "max_length": 9,
        },
    )
    with open_checkpoint(folder) as checkpoint:
        text = checkpoint.text()
    assert text.eos_ids == (7, 8, 2)
    assert text.bos_id == 1
    assert text.pad_id is None
    assert text.generation == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    write(folder / "generation_config.json", {"do_sample": True})
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<unk>"}, "eos_token": "<s>"}')
    with open_checkpoint(folder) as checkpoint:
        text = checkpoint.text()
    assert text.generation == {"temperature": 1.0}
    assert text.eos_ids == (8, 2)
    assert text.pad_id == 0
    assert [text.tokenizer_config[role] for role in ("eos_token", "pad_token")] == ["</s>", "<unk>"]


@pytest.mark.parametrize("do_sample", [True, False, None])
@pytest.mark.parametrize("temperature", [0.6, None])
def test_a_model_samples_where_transformers_would(folder: Path, do_sample: bool | None, temperature: float | None) -> None:
    write(folder / "generation_config.json", {"do_sample": do_sample, "temperature": temperature, "top_p": 0.9})
    theirs = GenerationConfig.from_pretrained(folder)
    samples = theirs.get_generation_mode() == "sample"
    with open_checkpoint(folder) as checkpoint:
        generation = checkpoint.text().generation
    assert samples == (do_sample is True)
    assert generation == {"top_p": 0.9, **({"temperature": temperature or 1.0} if samples else {})}


@pytest.mark.parametrize("value", ["hot", True, float("inf"), [1]])
def test_a_sampling_value_that_is_no_number_is_refused(folder: Path, value: object) -> None:
    write(folder / "generation_config.json", {"temperature": value})
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match="temperature is not a number"):
        checkpoint.text()


@pytest.mark.parametrize("value", ["</s>", True, 1.5, [2, None], 1 << 40])
def test_an_id_that_is_no_id_is_refused(folder: Path, value: object) -> None:
    write(folder / "generation_config.json", {"eos_token_id": value})
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match="eos_token_id is not a token id"):
        checkpoint.text()


def test_chat_templates_in_all_their_places(folder: Path) -> None:
    def template() -> str | None:
        with open_checkpoint(folder) as checkpoint:
            text = checkpoint.text()
        assert "chat_template" not in text.tokenizer_config
        assert text.chat_template == AutoTokenizer.from_pretrained(folder).chat_template or isinstance(
            AutoTokenizer.from_pretrained(folder).chat_template, dict
        )
        return text.chat_template

    assert template() is None
    save_tokenizer(folder, chat_template="{{ one }}")
    assert template() == "{{ one }}"
    save_tokenizer(folder, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ two }}"}])
    assert template() == "{{ two }}"
    (folder / "chat_template.jinja").write_text("{{ three }} é", encoding="utf-8")
    assert template() == "{{ three }} é"


@pytest.mark.parametrize("content", ["{}", "[", "null", '{"model": {"type": "BPE"}}', '{"version": "1.0", "model": 3}'])
def test_a_bad_tokenizer_is_one_line(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=r"tokenizer\.json") as raised:
        checkpoint.text()
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_another_kind_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=r"only vocab\.json; save it again"):
        checkpoint.text()


# Licence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readme", "license_name"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\r\nlicense: 'mit'  # free\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense:\n- bsd-3-clause\n---\n", "bsd-3-clause"),
        ("# no front matter\nlicense: mit", None),
        ("---\ntags: [license]\n---\nlicense: mit", None),
    ],
)
def test_the_licence_is_what_the_model_card_declares(folder: Path, readme: str, license_name: str | None) -> None:
    (folder / "README.md").write_bytes(readme.encode())
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.provenance.license == license_name
        assert checkpoint.provenance.source == folder.name
        assert checkpoint.provenance.revision is None


def test_licence_files_are_carried_and_recognized(folder: Path, tmp_path: Path) -> None:
    text = "                                 Apache License\n                           Version 2.0, January 2004\n"
    (folder / "LICENSE.txt").write_text(text)
    (folder / "Notice").write_bytes(b"\xff notice")
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE.secret").symlink_to(tmp_path / "secret")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.licenses() == {"LICENSE.txt": text.encode(), "Notice": b"\xff notice"}
        assert checkpoint.provenance.license == "apache-2.0"


# Real weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5"])
def test_a_real_model_again_as_bfloat16_shards(models: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    names = hf_folder.write(models(name), tmp_path / "folder", dtype=np.dtype(ml_dtypes.bfloat16))
    with open_checkpoint(models(name)) as gguf, open_checkpoint(tmp_path / "folder") as folder:
        spec, original = architectures.describe(gguf)
        again, read = architectures.describe(folder)
        assert again == spec
        assert folder.names() == set(names.values())
        for tensor in names:
            rounded = torch.from_numpy(original(tensor).array()).to(torch.bfloat16).to(torch.float32).numpy()
            np.testing.assert_array_equal(read(tensor).array(), rounded, err_msg=tensor)
        ours, theirs = folder.text(), gguf.text()
        assert (ours.eos_ids, ours.chat_template, ours.generation) == (theirs.eos_ids, theirs.chat_template, theirs.generation)
        before, after = (Tokenizer.from_str(text.tokenizer.decode()) for text in (theirs, ours))
        for sample in ("Hello, world!", "naïve 東京 🙂\n\n  x", "<|im_start|>user\nHi<|im_end|>"):
            assert after.encode(sample).ids == before.encode(sample).ids
