"""Mutated files: whatever the bytes, a SourceError or a checkpoint whose tensors can be read."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.errors import SourceError

EXTREMES = [0, 1, 2, 9, 31, 32, 0x7F, 0xFF, 0xFFFF, 1 << 16, 1 << 20, 1 << 31, (1 << 31) - 1, (1 << 32) - 1]
EXTREMES_64 = [*EXTREMES, 1 << 32, 1 << 40, 1 << 61, 1 << 62, 1 << 63, (1 << 63) - 1, (1 << 64) - 32, (1 << 64) - 1]


def seed_file() -> bytes:
    """A valid file with every kind of field in a small header, and a tensor of each block size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_uint32("general.alignment", 32)
        writer.add_uint16("split.count", 1)
        writer.add_float64("x.f", 0.5)
        writer.add_bool("x.b", True)
        writer.add_array("x.n", [1, 2, 3])
        writer.add_array("tokenizer.ggml.tokens", ["<s>", "ab", "▁c"])
        values = np.arange(64, dtype=np.float32).reshape(2, 32)
        for name in ("F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0"):
            kind = GGMLQuantizationType[name]
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        for name, size in (("Q6_K", 210), ("Q3_K", 110), ("IQ2_XXS", 66)):
            writer.add_tensor(name, np.zeros((1, size), np.uint8), raw_dtype=GGMLQuantizationType[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


SEED = seed_file()
HEADER = SEED.index(b"IQ2_XXS") + 7 + 4 + 16 + 4 + 8

Mutation = tuple[str, int, int]
# Most mutations hit the header: that is where a reader can be fooled.
PLACE = st.integers(0, HEADER - 1) | st.integers(0, len(SEED) - 1)
MUTATIONS: st.SearchStrategy[Mutation] = st.one_of(
    st.tuples(st.just("byte"), PLACE, st.integers(0, 255)),
    st.tuples(st.just("u32"), PLACE, st.sampled_from(EXTREMES)),
    st.tuples(st.just("u64"), PLACE, st.sampled_from(EXTREMES_64)),
    st.tuples(st.just("cut"), st.integers(0, len(SEED)), st.just(0)),
    st.tuples(st.just("drop"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("double"), PLACE, st.integers(1, 40)),
)


def mutated(content: bytes, mutation: Mutation) -> bytes:
    kind, at, value = mutation
    if kind == "byte":
        return content[:at] + bytes([value]) + content[at + 1 :]
    if kind == "u32":
        return content[:at] + struct.pack("<I", value) + content[at + 4 :]
    if kind == "u64":
        return content[:at] + struct.pack("<Q", value) + content[at + 8 :]
    if kind == "cut":
        return content[:at]
    if kind == "drop":
        return content[:at] + content[at + value :]
    return content[: at + value] + content[at:]


def read_all(path: Path) -> int:
    """Open the file and read each tensor that can be read; how many values there were."""
    total = 0
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            try:
                tensor = checkpoint.tensor(name)
            except SourceError:
                continue
            values = tensor.array()
            assert values.shape == tensor.shape
            assert values.nbytes <= 16 * path.stat().st_size
            total += values.size
    return total


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


def test_the_seed_is_valid(path: Path) -> None:
    path.write_bytes(SEED)
    assert read_all(path) == 6 * 64 + 2 * 256


@given(mutations=st.lists(MUTATIONS, min_size=1, max_size=4))
@settings(max_examples=1500, deadline=2000)
def test_mutations(path: Path, mutations: list[Mutation]) -> None:
    content = SEED
    for mutation in mutations:
        content = mutated(content, mutation)
    path.write_bytes(content)
    with contextlib.suppress(SourceError):
        read_all(path)


@pytest.mark.parametrize(
    ("form", "extremes"), [("<I", [0, 9, 1 << 31, (1 << 32) - 1]), ("<Q", [1 << 40, 1 << 63, (1 << 64) - 1])]
)
def test_each_field_at_its_extremes(path: Path, form: str, extremes: list[int]) -> None:
    """Every position of the header: not left to chance."""
    refused = 0
    for at in range(HEADER - 8):
        for value in extremes:
            field = struct.pack(form, value)
            path.write_bytes(SEED[:at] + field + SEED[at + len(field) :])
            try:
                read_all(path)
            except SourceError:
                refused += 1
    assert refused > HEADER


@given(content=st.binary(max_size=200))
@settings(max_examples=300, deadline=2000)
def test_noise_after_the_magic(path: Path, content: bytes) -> None:
    path.write_bytes(b"GGUF\x03\0\0\0" + content)
    with pytest.raises(SourceError):
        read_all(path)
