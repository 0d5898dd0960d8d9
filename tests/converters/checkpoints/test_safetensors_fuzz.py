"""Damaged and hostile safetensors: only ever a SourceError of one line, and never more accepted than the format allows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.checkpoints.safetensors import FLOATS, MAX_DIM, MAX_HEADER_BYTES, SafetensorsFile
from edgellm.errors import SourceError

VALID = safetensors.torch.save(
    {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "b": torch.arange(6).to(torch.bfloat16),
        "c": torch.ones(2, 2, dtype=torch.float16),
        "d": torch.ones(5, dtype=torch.int8),
    },
    metadata={"format": "pt"},
)
FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path) -> dict[str, np.ndarray] | None:
    """All floating-point tensors, or None where the file is refused as it should be."""
    try:
        with SafetensorsFile(path) as file:
            return {name: file.tensor(name).array() for name, info in file.tensors.items() if info.dtype in FLOATS}
    except SourceError as error:
        if "\n" in str(error) or not str(error).startswith(str(path)):
            raise AssertionError(f"not one line: {error!r}") from error
        return None


def check_against_the_package(path: Path) -> None:
    """What we accept, the safetensors package accepts, with the same values."""
    ours = read(path)
    if ours is None:
        return
    with safetensors.safe_open(path, framework="pt") as file:
        for name, values in ours.items():
            theirs = file.get_tensor(name).to(torch.float32).numpy().reshape(values.shape)
            np.testing.assert_array_equal(values, theirs)


def rebuild(header: object, data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def parts() -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(VALID[:8], "little")
    header: dict[str, Any] = json.loads(VALID[8 : 8 + length])
    return header, VALID[8 + length :]


def test_the_valid_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(VALID)
    assert set(read(path) or {}) == {"a", "b", "c"}
    check_against_the_package(path)


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    (tmp_path / "x.safetensors").write_bytes(content)
    check_against_the_package(tmp_path / "x.safetensors")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(VALID)):
        (tmp_path / "x.safetensors").write_bytes(VALID[:length])
        assert read(tmp_path / "x.safetensors") is None, length


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from(["F32", "BF16", "F4", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
    ),
    max_leaves=8,
)


@FUZZ
@given(name=st.sampled_from("abcd"), key=st.sampled_from(["dtype", "shape", "data_offsets", "new", None]), value=JSON)
def test_changed_fields(tmp_path: Path, name: str, key: str | None, value: object) -> None:
    header, data = parts()
    if key is None:
        header[name] = value
    else:
        header[name][key] = value
    (tmp_path / "x.safetensors").write_bytes(rebuild(header, data))
    check_against_the_package(tmp_path / "x.safetensors")


@FUZZ
@given(
    dtype=st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "F4", "BOOL"]),
    shape=st.lists(st.integers(0, 5) | st.just(1 << 62), max_size=5),
    begin=st.integers(-2, 40),
    size=st.integers(-2, 80),
)
def test_any_shape_and_offsets(tmp_path: Path, dtype: str, shape: list[int], begin: int, size: int) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
    (tmp_path / "x.safetensors").write_bytes(rebuild({"x": entry}, bytes(max(0, begin + size))))
    check_against_the_package(tmp_path / "x.safetensors")
    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I8": 8, "F4": 4, "BOOL": 8}[dtype]
    if begin == 0 and size >= 0 and max(shape, default=0) <= MAX_DIM and math.prod(shape) * bits == 8 * size:
        assert read(tmp_path / "x.safetensors") is not None


def entry(begin: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((1 << 63).to_bytes(8, "little") + b"{}", "over the limit"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "over the limit"),
        ((1000).to_bytes(8, "little") + b"{}", "the file has 10"),
        (b"", "too few"),
        (rebuild([], b""), "not a JSON object"),
        (rebuild({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)), "overlaps another"),
        (rebuild({"x": entry(0, 8), "y": entry(0, 8)}, bytes(8)), "overlaps another"),
        (rebuild({"x": entry(0, 4), "y": entry(8, 12)}, bytes(12)), "leaves a hole"),
        (rebuild({"x": entry(0, 8)}, bytes(12)), "need .* bytes, the file has"),
        (rebuild({"x": entry(0, 12)}, bytes(8)), "need .* bytes, the file has"),
        (rebuild({"x": entry(0, 8, dtype="F31")}, bytes(8)), "unknown type 'F31'"),
        (rebuild({"x": entry(0, 8, shape=[3])}, bytes(8)), "do not fit"),
        (rebuild({"x": entry(0, 8, shape=[1 << 40] * 60)}, bytes(8)), "do not fit"),
        (rebuild({"x": entry(0, 8, shape=[True, 2])}, bytes(8)), "impossible shape"),
        (rebuild({"x": entry(0, 8, data_offsets=[0, 8, 8])}, bytes(8)), "impossible offsets"),
        (rebuild({"x": entry(0, 8, data_offsets=[8, 0])}, bytes(8)), "impossible offsets"),
        (b'\x1a\0\0\0\0\0\0\0{"x":{},"x":{},          }', "JSON"),
        ((400_000).to_bytes(8, "little") + b'{"x":' + b" " * 399_995, "JSON"),
        ((400_008).to_bytes(8, "little") + b'{"x":"' + b" " * 200_000 + b'",' + b"[" * 200_000, "not a table|JSON"),
        ((100_000).to_bytes(8, "little") + b'{"x":' + b"[" * 99_995, "not a table"),
    ],
)
def test_hostile_headers_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match=message) as raised:
        SafetensorsFile(tmp_path / "x.safetensors")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_deep_and_doubled_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    deep = b'{"x":' + b'{"abcdefghijklmnopq":' * 50_000 + b"1" + b"}" * 50_001
    path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(SourceError, match="nested too deeply"):
        SafetensorsFile(path)
    twice = json.dumps({"x": entry(0, 4)})[:-1].encode() + b"," + json.dumps({"x": entry(0, 4)})[1:].encode()
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + bytes(4))
    with pytest.raises(SourceError, match="a key is there twice"):
        SafetensorsFile(path)


@FUZZ
@given(st.data())
def test_a_changed_folder(tmp_path: Path, data: st.DataObject) -> None:
    """Any of the folder's JSON files with any field changed: opened and read, or refused in one line."""
    files: dict[str, Any] = {
        "config.json": {"model_type": "llama", "eos_token_id": 1, "quantization_config": None, "text_config": {}},
        "generation_config.json": {"eos_token_id": [1], "temperature": 0.5, "do_sample": True},
        "tokenizer_config.json": {"eos_token": "b", "added_tokens_decoder": {"3": {"content": "c"}}, "chat_template": "x"},
        "special_tokens_map.json": {"pad_token": {"content": "a"}},
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [],
            "truncation": None,
            "padding": None,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        },
        "model.safetensors.index.json": {"weight_map": {"x": "model-1.safetensors"}},
    }
    name = data.draw(st.sampled_from(sorted(files)))
    field = data.draw(st.sampled_from([*files[name], None]))
    value = data.draw(JSON | st.sampled_from(["../x.safetensors", "/x.safetensors", "model-2.safetensors"]))
    if field is None:
        files[name] = value
    else:
        files[name][field] = value
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, tmp_path / "model-1.safetensors")
    try:
        with open_checkpoint(tmp_path) as checkpoint:
            checkpoint.text()
            checkpoint.tensor("x").array()
    except SourceError as error:
        if "\n" in str(error) or len(str(error)) > 800:
            raise AssertionError(f"not one line: {error!r}") from error
