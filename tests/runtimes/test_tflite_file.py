"""Damaged TFLite files are refused before native code reads them, and what passes does not bring it down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgellm.conversion import convert
from edgellm.errors import BundleError
from edgellm.runtimes import tflite_file

TABLES = 1 << 16  # bytes at the front that are tables and nothing else


@pytest.fixture(scope="module")
def model(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file."""
    bundle = convert(tiny_source, tmp_path_factory.mktemp("file") / "tiny", target="tflite", quant="int4")
    return bundle.file("model.tflite").read_bytes()


def test_a_sound_file_passes(model: bytes, tmp_path: Path) -> None:
    tflite_file.check(write(tmp_path, model))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda model: b"", "not a sound TFLite model"),
        (lambda model: b"TFL3", "not a sound"),
        (lambda model: b"\0" * 4096, "does not begin as one"),
        (lambda model: b"\xff\xff\xff\x7fTFL3" + model[8:], "leads to byte"),
        (lambda model: model[:1000], "leads to byte"),
        (lambda model: model[:-5000], "bytes lie behind the file's end"),
    ],
)
def test_plain_damage(model: bytes, tmp_path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        tflite_file.check(write(tmp_path, damage(model)))


FAR = 1_000_000


def blockwise(tables: Any) -> Any:
    found = (tensor.quantization for tensor in tables.subgraphs[0].tensors if tensor.quantization is not None)
    return next(each.details for each in found if each.details is not None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tables: setattr(tables.subgraphs[0].tensors[3], "buffer", FAR), "no buffer 1000000"),
        (lambda tables: setattr(tables.subgraphs[0].tensors[3], "shape", [-1]), "negative size"),
        (lambda tables: tables.subgraphs[1].inputs.__setitem__(0, FAR), "no tensor 1000000"),
        (lambda tables: tables.subgraphs[1].outputs.__setitem__(0, -1), "no tensor -1"),
        (lambda tables: tables.subgraphs[0].operators[5].inputs.__setitem__(0, FAR), "no tensor 1000000"),
        (lambda tables: tables.subgraphs[0].operators[5].outputs.__setitem__(0, -1), "no tensor -1"),
        (lambda tables: setattr(tables.subgraphs[0].operators[5], "opcodeIndex", FAR), "no operator code 1000000"),
        (lambda tables: setattr(tables.signatureDefs[0], "subgraphIndex", FAR), "no subgraph 1000000"),
        (lambda tables: setattr(tables.signatureDefs[0].inputs[0], "tensorIndex", FAR), "no tensor 1000000"),
        (lambda tables: setattr(blockwise(tables), "scales", FAR), "no tensor 1000000"),
        (lambda tables: setattr(tables.buffers[-1], "offset", 1 << 63), "bytes lie behind the file's end"),
        (lambda tables: setattr(tables, "metadataBuffer", [1]), "unknown field 5"),
    ],
)
def test_what_is_named_has_to_be_there(model: bytes, tmp_path: Path, damage: Callable[[Any], None], words: str) -> None:
    """Well-formed tables, written by the schema's own code, with one wrong index."""
    tables = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    tflite_file.check(write(tmp_path, packed(tables, model)))
    damage(tables)
    with pytest.raises(BundleError, match=words):
        tflite_file.check(write(tmp_path, packed(tables, model)))


def packed(tables: Any, model: bytes) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(tables.Pack(builder), b"TFL3")
    return bytes(builder.Output()).ljust(len(model), b"\0")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
@example(places=[(0.0, b"\xff" * 8)])
def test_any_damage_is_an_error_of_ours_or_none(model: bytes, tmp_path: Path, places: list[tuple[float, bytes]]) -> None:
    damaged = bytearray(model)
    for where, value in places:
        at = int(where * (len(model) - 9))
        damaged[at : at + len(value)] = value
    try:
        tflite_file.check(write(tmp_path, bytes(damaged)))
    except BundleError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


LOAD = """
import sys
from pathlib import Path
from edgellm.errors import EdgeError
from edgellm.bundle import sha256_file
from edgellm.runtimes.tflite import open_model
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    try:
        open_model(path, sha256_file(path), 1)
    except EdgeError:
        pass
print("end")
"""


@pytest.mark.slow
def test_what_passes_does_not_crash_the_runtime(model: bytes, tmp_path: Path) -> None:
    """Two hundred files with one damaged word in their tables that the check lets through, loaded in one process."""
    random = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    made = 0
    for number in range(2000):
        damaged = bytearray(model)
        at = int(random.integers(8, TABLES)) // 4 * 4
        damaged[at : at + 4] = random.integers(0, 256, 4, dtype=np.uint8).tobytes()
        path = write(folder, bytes(damaged), f"{number:04}")
        try:
            tflite_file.check(path)
            made += 1
        except BundleError:
            path.unlink()
        if made == 200:
            break
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]
    assert done.stdout.endswith("end\n")


def write(folder: Path, content: bytes, name: str = "model.tflite") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
