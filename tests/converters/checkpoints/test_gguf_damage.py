"""What the GGUF reader refuses: every damage is one SourceError that says what and where."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFEndian

from edgellm.converters.checkpoints import gguf_file
from edgellm.converters.checkpoints.gguf import open_checkpoint
from edgellm.errors import SourceError
from tests.gguf_files import ARCHITECTURE, assemble, entry, pair, text, write_model


def test_an_unsupported_format_is_an_error_of_its_tensor_only(saved: Callable[[bytes], Path]) -> None:
    tensors = [entry("good", [4]), entry("odd", [256], kind=16, offset=32), entry("newer", [7], kind=999, offset=32)]
    with open_checkpoint(saved(assemble(tensors=tensors, data=bytes(32 + 66)))) as checkpoint:
        assert checkpoint.tensor("good").array().tolist() == [0, 0, 0, 0]
        assert checkpoint.type_of("odd") == "IQ2_XXS"
        with pytest.raises(SourceError, match=r"model\.gguf: tensor 'odd' is stored as IQ2_XXS.*; get the model as Q8_0"):
            checkpoint.tensor("odd")
        with pytest.raises(SourceError, match="tensor 'newer' is stored as type 999"):
            checkpoint.tensor("newer")
        for call in (checkpoint.tensor, checkpoint.type_of):
            with pytest.raises(SourceError, match="no tensor 'absent'"):
                call("absent")


def refuse(path: Path, pattern: str) -> None:
    """Refused in one line that starts with the file, and without memory beyond the file's size and a little."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=pattern) as caught:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.fix


HUGE = (1 << 64) - 1
NUMBERS = struct.pack("<IQ", 4, 1)  # an array of one uint32, but for the number


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "cannot be read: cannot mmap an empty file"),
        (b"GG", "header .*4 bytes expected, the file ends after 2"),
        (b"GGUF\x03\0\0\0", "8 bytes expected, the file ends after 0"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"tjgg" + bytes(40), "before GGUF"),
        (assemble(version=1), "GGUF version 1 is not supported.*get a newer file"),
        (assemble(version=4), "GGUF version 4 is not supported.*upgrade edgellm"),
        (assemble(counts=(HUGE, 1)), f"says {HUGE} tensors, and only"),
        (assemble(counts=(0, HUGE)), f"says {HUGE} metadata keys, and only"),
        (assemble(counts=(0, 2)), "metadata key 1 .*no name"),
        (assemble(counts=(1, 1)), "tensor 0 .*no name|bytes follow"),
        (assemble([text(b"\xff\xfe") + bytes(8)]), "metadata key 1 .*not UTF-8"),
        (assemble([pair("x", 8, text(b"\xc3\x28"))]), "metadata key 'x' .*not UTF-8"),
        (assemble([pair("x", 8, struct.pack("<Q", HUGE))]), f"metadata key 'x' .*{HUGE} bytes expected"),
        (assemble([pair("x", 8, struct.pack("<Q", 1 << 40))]), "metadata key 'x' .*1099511627776 bytes expected"),
        (assemble([pair("x", 13, bytes(8))]), "metadata key 'x' .*unknown value type 13"),
        (assemble([pair("x", 7, b"\x02")]), "metadata key 'x' .*neither 0 nor 1"),
        (assemble([pair("x", 4, bytes(4))] * 2), "metadata key 'x' .*twice"),
        (assemble([pair("x\n\x1b[31m", 13, bytes(8))]), r"metadata key 'x\\n\\x1b\[31m'"),
        (assemble([pair("x", 9, struct.pack("<IQ", 4, HUGE))]), f"metadata key 'x' .*{4 * HUGE} bytes expected"),
        (assemble([pair("x", 9, struct.pack("<IQ", 8, HUGE))]), f"metadata key 'x' .*says {HUGE} strings"),
        (assemble([pair("x", 9, struct.pack("<IQ", 9, HUGE))]), f"metadata key 'x' .*says {HUGE} nested arrays"),
        (assemble([pair("x", 9, struct.pack("<IQ", 99, 1) + bytes(8))]), "metadata key 'x' .*unknown value type 99"),
        (assemble([pair("x", 9, struct.pack("<IQQ", 8, 2, 1 << 50) + bytes(16))]), "string 0 of 2 reaches past the end"),
        (assemble([pair("x", 9, struct.pack("<IQ", 8, 3) + text("abcdefgh") * 2)]), "string 2 of 3|string 2 is not"),
        (assemble([pair("x", 9, struct.pack("<IQ", 8, 2) + text("a") + text(b"\xff"))]), "'x' .*string 1 is not UTF-8"),
        (assemble([pair("x", 9, struct.pack("<IQ", 9, 1) * 6 + NUMBERS + bytes(4))]), "'x' .*nested deeper than"),
        (
            assemble([pair("x", 9, struct.pack("<IQ", 9, 5000) + struct.pack("<IQ", 4, 0) * 5000)]),
            "'x' .*5000 nested arrays, more than any model has",
        ),
        (
            assemble([pair(x, 9, struct.pack("<IQ", 9, 3000) + struct.pack("<IQ", 4, 0) * 3000) for x in ("x", "y")]),
            "'y' .*3000 nested arrays, more than any model has",
        ),
        (assemble([pair("general.alignment", 4, bytes(4))]), "'general.alignment' .*0 is not a power of two"),
        (assemble([pair("general.alignment", 4, struct.pack("<I", 48))]), "48 is not a power of two"),
        (assemble([pair("general.alignment", 8, text("32"))]), "not a power of two"),
        (assemble([pair("split.count", 9, NUMBERS + bytes(4))]), "'split.count' is not an integer"),
        (assemble(tensors=[entry("a", [4])]), "tensor 'a' .*needs 16 bytes .*the file has 0"),
        (assemble(tensors=[entry("a", [4])], data=bytes(15)), "tensor 'a' .*needs 16 bytes .*the file has 15"),
        (assemble(tensors=[entry("a", [4], offset=32)], data=bytes(47)), "needs 16 bytes .*the file has 15"),
        (assemble(tensors=[entry("a", [4], offset=1 << 63)], data=bytes(64)), "tensor 'a' .*needs 16 bytes"),
        (assemble(tensors=[entry("a", [4], offset=16)], data=bytes(64)), "tensor 'a' .*offset 16 is not a multiple of 32"),
        (assemble(tensors=[entry("a", [4])] * 2, data=bytes(64)), "tensor 'a' .*twice"),
        (assemble(tensors=[entry("a", [1 << 32] * 4)], data=bytes(64)), "tensor 'a' .*needs"),
        (assemble(tensors=[entry("a", [1 << 62, 4])], data=bytes(64)), "tensor 'a' .*needs"),
        (assemble(tensors=[entry("a", [0, 4])], data=bytes(64)), "tensor 'a' .*dimension of 0"),
        (assemble(tensors=[entry("a", [1] * 5)], data=bytes(64)), "tensor 'a' .*5 dimensions"),
        (assemble(tensors=[text("a") + struct.pack("<I", 1 << 31)], data=bytes(64)), "tensor 'a' .*2147483648 dimensions"),
        (
            assemble(tensors=[entry("a", [48, 2], kind=2)], data=bytes(64)),
            "tensor 'a' .*rows of 48 values, Q4_0 has blocks of 32",
        ),
        (assemble(tensors=[entry("", [4])], data=bytes(64)), "tensor 0 .*no name"),
        (assemble(tensors=[text("n" * 8)[:-1]], alignment=1), "tensor 0 .*8 bytes expected, the file ends after 7"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_damaged_files(content: bytes, pattern: str, saved: Callable[[bytes], Path]) -> None:
    refuse(saved(content), pattern)


def test_too_many_entries(saved: Callable[[bytes], Path]) -> None:
    count = gguf_file.MAX_ENTRIES + 1
    refuse(saved(assemble(counts=(count, 1)) + bytes(24 * count)), f"says {count} tensors, more than any model has")
    refuse(saved(assemble(counts=(0, count)) + bytes(13 * count)), f"says {count} metadata keys, more than any model has")


def test_a_header_without_end(tmp_path: Path) -> None:
    """A sparse file of 256 MiB whose metadata claims to be one string."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(assemble([pair("x", 8, struct.pack("<Q", 200 << 20))], alignment=1))
        file.truncate(256 << 20)
    refuse(path, "header is larger than 128 MiB")


@pytest.mark.parametrize("key", [b"", pair("general.architecture", 8, text("")), pair("general.architecture", 4, bytes(4))])
def test_no_architecture(key: bytes, saved: Callable[[bytes], Path]) -> None:
    content = assemble().replace(ARCHITECTURE, key)
    refuse(saved(content if key else content.replace(struct.pack("<QQ", 0, 1), bytes(16))), "no 'general.architecture'")


def test_no_tokenizer(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    with open_checkpoint(path) as checkpoint, pytest.raises(SourceError, match="tokenizer") as caught:
        checkpoint.text()
    assert str(caught.value).startswith(str(path))
    assert caught.value.fix


def test_big_endian(tmp_path: Path) -> None:
    refuse(write_model(tmp_path / "model.gguf", endianess=GGUFEndian.BIG), "big-endian GGUF")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.gguf", "no such file")
    refuse(tmp_path, "not a file")


def test_every_truncation(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    content = path.read_bytes()
    end = content.rindex(np.float32(11).tobytes()) + 4  # what follows is padding
    for length in range(end):
        path.write_bytes(content[:length])
        with pytest.raises(SourceError):
            open_checkpoint(path)
