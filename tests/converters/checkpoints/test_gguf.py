"""Files that gguf-py writes are read back as they were meant; damaged ones are refused in one clear line."""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from numpy.typing import NDArray

from edgellm.converters.checkpoints.base import Checkpoint
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.errors import SourceError
from tests.gguf_files import RNG, WRITABLE, assemble, entry, pair, save, text, write_model

# Reading what was written.


def test_metadata_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "gemma3")
    numbers = {
        GGUFValueType.UINT8: 200,
        GGUFValueType.INT8: -100,
        GGUFValueType.UINT16: 60000,
        GGUFValueType.INT16: -30000,
        GGUFValueType.UINT32: 4_000_000_000,
        GGUFValueType.INT32: -2_000_000_000,
        GGUFValueType.UINT64: 1 << 63,
        GGUFValueType.INT64: -(1 << 62),
        GGUFValueType.FLOAT64: 0.1,
        GGUFValueType.FLOAT32: 0.5,
    }
    for kind, value in numbers.items():
        writer.add_key_value(f"x.{kind.name}", value, kind)
    writer.add_bool("x.yes", True)
    writer.add_bool("x.no", False)
    writer.add_string("x.text", "größe ▁\n")
    writer.add_array("x.texts", ["", "a", "▁wörd", "🙂"])
    writer.add_array("x.ints", [1, -2, 3])
    writer.add_array("x.floats", [0.5, -2.5])
    writer.add_array("x.bools", [True, False])
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0])
    writer.add_array("tokenizer.ggml.token_type", [3, 1])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    save(writer)
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        for kind, value in numbers.items():
            assert config[f"x.{kind.name}"] == value
            assert type(config[f"x.{kind.name}"]) is type(value)
        assert config["x.yes"] is True
        assert config["x.no"] is False
        assert config["x.text"] == "größe ▁\n"
        assert config["x.texts"] == ["", "a", "▁wörd", "🙂"]
        assert config["x.ints"].tolist() == [1, -2, 3]
        assert config["x.floats"].tolist() == [0.5, -2.5]
        assert config["x.bools"].tolist() == [True, False]
        assert config["tokenizer.ggml.bos_token_id"] == 1
        arrays = {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges")}
        assert set(checkpoint.metadata) - set(config) == arrays
        assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["<s>", "a"]
        assert checkpoint.architecture == "gemma3"


def test_nested_arrays(saved: Callable[[bytes], Path]) -> None:
    inner = struct.pack("<IQ2I", 4, 2, 7, 8)
    nested = pair("x.nested", 9, struct.pack("<IQ", 9, 2) + inner + struct.pack("<IQ", 8, 1) + text("deep"))
    with open_checkpoint(saved(assemble([nested]))) as checkpoint:
        numbers, words = checkpoint.config["x.nested"]
        assert numbers.tolist() == [7, 8]
        assert words == ["deep"]


def test_it_is_a_checkpoint(tmp_path: Path) -> None:
    with open_checkpoint(write_model(tmp_path / "tiny.gguf")) as opened:
        checkpoint: Checkpoint = opened
        assert checkpoint.naming == "gguf"
        assert checkpoint.architecture == "llama"
        assert checkpoint.provenance.source == "tiny.gguf"
        assert checkpoint.provenance.license == "apache-2.0"
        assert checkpoint.names() == {"weight"}
        assert checkpoint.licenses() == {}


@pytest.mark.parametrize("kind", WRITABLE)
def test_tensors(kind: str, tmp_path: Path) -> None:
    """Matrix, vector and stack of matrices: shapes in numpy's order, any range of rows."""
    values = {
        "matrix": RNG.normal(size=(40, 96)).astype(np.float32),
        "vector": RNG.normal(size=(320,)).astype(np.float32),
        "experts": RNG.normal(size=(3, 8, 32)).astype(np.float32),
    }
    with open_checkpoint(write_model(tmp_path / "model.gguf", values, kind)) as checkpoint:
        for name, value in values.items():
            packed = quants.quantize(value, GGMLQuantizationType[kind])
            expected = quants.dequantize(packed, GGMLQuantizationType[kind])
            tensor = checkpoint.tensor(name)
            assert tensor.shape == value.shape
            assert checkpoint.type_of(name) == kind
            assert tensor.array().dtype == np.float32
            np.testing.assert_array_equal(tensor.array(), expected)
            for start, stop in [(0, 1), (1, 3), (2, 2), (len(value) - 1, len(value))]:
                np.testing.assert_array_equal(tensor.rows(start, stop), expected[start:stop])
        vector = quants.dequantize(quants.quantize(values["vector"], GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
        np.testing.assert_array_equal(checkpoint.tensor("vector").rows(37, 99), vector[37:99])  # within blocks


def test_slices_are_fresh_and_writable(tmp_path: Path) -> None:
    with open_checkpoint(write_model(tmp_path / "model.gguf")) as checkpoint:
        tensor = checkpoint.tensor("weight")
        first = tensor.rows(0, 2)
        first += 100
        np.testing.assert_array_equal(tensor.rows(0, 2), [[0, 1, 2, 3], [4, 5, 6, 7]])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (2, 1)])
def test_rows_outside_the_tensor(start: int, stop: int, tmp_path: Path) -> None:
    with open_checkpoint(write_model(tmp_path / "model.gguf")) as checkpoint, pytest.raises(IndexError):
        checkpoint.tensor("weight").rows(start, stop)


@pytest.mark.parametrize("alignment", [1, 8, 256])
def test_alignment_of_the_file(alignment: int, saved: Callable[[bytes], Path]) -> None:
    first, second = np.arange(3, dtype="<f4"), np.arange(5, dtype="<f4") + 10
    offset = -(-first.nbytes // alignment) * alignment
    data = first.tobytes().ljust(offset, b"\0") + second.tobytes()
    mark = pair("general.alignment", 4, struct.pack("<I", alignment))
    tensors = [entry("first", [3]), entry("second", [5], offset=offset)]
    with open_checkpoint(saved(assemble([mark], tensors, data, alignment=alignment))) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor("first").array(), first)
        np.testing.assert_array_equal(checkpoint.tensor("second").array(), second)


def test_version_2_and_a_scalar(saved: Callable[[bytes], Path]) -> None:
    content = assemble(tensors=[entry("scalar", [])], data=struct.pack("<f", 2.5), version=2)
    with open_checkpoint(saved(content)) as checkpoint:
        assert checkpoint.tensor("scalar").array().tolist() == [2.5]


def test_two_threads(tmp_path: Path) -> None:
    values = {f"t{i}": RNG.normal(size=(600, 512)).astype(np.float32) for i in range(2)}
    with open_checkpoint(write_model(tmp_path / "model.gguf", values, "Q5_0")) as checkpoint:
        expected = {name: checkpoint.tensor(name).array() for name in values}
        equal: list[bool] = []

        def read(name: str) -> None:
            tensor = checkpoint.tensor(name)
            equal.extend(np.array_equal(tensor.rows(0, 600), expected[name]) for _ in range(20))

        threads = [threading.Thread(target=read, args=(name,)) for name in values]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert equal == [True] * 40


def test_close_releases_the_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensor("weight")
    tensor.array()
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(SourceError, match="closed"):
        tensor.rows(0, 1)
    assert not mapped(path)
    path.unlink()  # Windows refuses while a mapping lives


def test_a_refused_file_is_released(saved: Callable[[bytes], Path]) -> None:
    path = saved(assemble(tensors=[entry("a", [4])]))
    with pytest.raises(SourceError) as caught:
        open_checkpoint(path)
    assert not mapped(path)
    assert caught.tb  # while the traceback keeps the reader's frames alive


def mapped(path: Path) -> bool:
    return sys.platform == "linux" and str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")


# Split models.


def write_split(folder: Path) -> tuple[list[Path], dict[str, NDArray[Any]]]:
    values = {f"t{i}": RNG.normal(size=(4, 32)).astype(np.float32) for i in range(5)}
    write_model(folder / "big.gguf", values, split_max_tensors=2)
    return sorted(folder.glob("big-*.gguf")), values


def test_any_part_opens_a_split_model(tmp_path: Path) -> None:
    parts, values = write_split(tmp_path)
    assert [part.name for part in parts] == [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        with open_checkpoint(part) as checkpoint:
            assert checkpoint.names() == set(values)
            assert checkpoint.architecture == "llama"
            assert checkpoint.provenance.source == part.name
            for name, value in values.items():
                np.testing.assert_array_equal(checkpoint.tensor(name).array(), value)
        assert not any(mapped(each) for each in parts)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts, _ = write_split(tmp_path)
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        with pytest.raises(SourceError, match=r"big-00002-of-00003\.gguf: part 2 of 3 is missing"):
            open_checkpoint(part)


def test_a_renamed_part(tmp_path: Path) -> None:
    parts, _ = write_split(tmp_path)
    moved = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(SourceError, match=r"part 1 of a model in 3 parts, but not named '\.\.\.-00001-of-00003\.gguf'"):
        open_checkpoint(moved)


def test_swapped_parts(tmp_path: Path) -> None:
    parts, _ = write_split(tmp_path)
    parts[1].rename(tmp_path / "aside")
    parts[2].rename(parts[1])
    (tmp_path / "aside").rename(parts[2])
    with pytest.raises(SourceError, match="named part 2 of 3, but its metadata says part 3 of 3"):
        open_checkpoint(parts[0])


def test_a_part_of_another_model(tmp_path: Path) -> None:
    """Same tensors in two parts, and then a part with too few."""
    parts, _ = write_split(tmp_path)
    content = parts[1].read_bytes()
    parts[1].write_bytes(content.replace(text("t2"), text("t0")))
    with pytest.raises(SourceError, match="tensor 't0' is also in big-00001-of-00003"):
        open_checkpoint(parts[0])
    parts[1].write_bytes(content)
    total = pair("split.tensors.count", 5, struct.pack("<i", 5))
    assert total in parts[0].read_bytes()
    parts[0].write_bytes(parts[0].read_bytes().replace(total, total[:-4] + struct.pack("<i", 6)))
    with pytest.raises(SourceError, match="hold 5 tensors, not 6"):
        open_checkpoint(parts[0])


# Real models.


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "qwen2.5", "gemma3"])
def test_real_metadata(model: str, models: Callable[[str], Path]) -> None:
    with open_checkpoint(models(model)) as checkpoint:
        assert checkpoint.architecture == {"smollm2": "llama", "qwen2.5": "qwen2", "gemma3": "gemma3"}[model]
        assert checkpoint.text().tokenizer.startswith(b"{")
