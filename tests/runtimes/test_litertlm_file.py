"""Damaged .litertlm files are refused, and what a sound one is agrees with LiteRT-LM's own reader."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from litert_lm_builder import litertlm_header_schema_py_generated as schema

from edgellm.conversion import convert
from edgellm.errors import BundleError
from edgellm.litertlm import check_litertlm, export_litertlm

FRONT = 32  # where the list of sections begins
END = 24  # where its end is written


@pytest.fixture(scope="module")
def packed(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file."""
    folder = tmp_path_factory.mktemp("file")
    bundle = convert(tiny_source, folder / "tiny", target="tflite", quant="int4")
    return export_litertlm(bundle.path, folder / "tiny.litertlm", max_context=64).read_bytes()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file.litertlm"
    path.write_bytes(content)
    return path


def listed(content: bytes) -> Any:
    """The list of sections as objects that can be changed; the format's own code reads no unions."""
    root = schema.LiteRTLMMetaData.GetRootAs(content, FRONT)
    system, sections = root.SystemMetadata(), root.SectionMetadata()
    objects = [sections.Objects(index) for index in range(sections.ObjectsLength())]
    return schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT([pair(system.Entries(index)) for index in range(system.EntriesLength())]),
        sectionMetadata=schema.SectionMetadataT(
            [
                schema.SectionObjectT(
                    items=[pair(each.Items(index)) for index in range(each.ItemsLength())],
                    beginOffset=each.BeginOffset(),
                    endOffset=each.EndOffset(),
                    dataType=each.DataType(),
                )
                for each in objects
            ]
        ),
    )


def pair(entry: Any) -> Any:
    value = schema.StringValue()
    value.Init(entry.Value().Bytes, entry.Value().Pos)
    return schema.KeyValuePairT(entry.Key(), entry.ValueType(), schema.StringValueT(value.Value()))


def relisted(content: bytes, sections: Any) -> bytes:
    """The file with another list of sections, written by the format's own code."""
    builder = flatbuffers.Builder()
    builder.Finish(sections.Pack(builder))
    front = bytes(builder.Output())
    assert FRONT + len(front) < 16 << 10
    head = content[:END] + struct.pack("<Q", FRONT + len(front)) + front
    return head + content[len(head) :]


def section(content: bytes, kind: int) -> Any:
    return only(listed(content), kind)


KINDS = schema.AnySectionDataType
MODEL, METADATA, TOKENIZER = KINDS.TFLiteModel, KINDS.LlmMetadataProto, KINDS.HF_Tokenizer_Zlib


def test_a_sound_file_passes(packed: bytes, tmp_path: Path) -> None:
    check_litertlm(write(tmp_path, packed))
    check_litertlm(write(tmp_path, relisted(packed, listed(packed))))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "not a sound .litertlm"),
        (lambda content: b"LITERTLM", "does not begin as one"),
        (lambda content: b"\0" * 4096, "does not begin as one"),
        (lambda content: b"TFL3" + content[4:], "does not begin as one"),
        (lambda content: content[:8] + b"\2" + content[9:], "version 2, and not 1"),
        (lambda content: content[:END] + b"\xff" * 8 + content[32:], "header ends at byte"),
        (lambda content: content[:END] + struct.pack("<Q", 31) + content[32:], "header ends at byte 31"),
        (lambda content: content[:END] + struct.pack("<Q", 40) + content[32:], "leads to byte"),
        (lambda content: content[:FRONT] + b"\xff\xff\xff\x7f" + content[36:], "leads to byte"),
        (lambda content: content[:-4097], "a section lies at bytes"),
        (lambda content: content[: 16 << 10], "a section lies at bytes"),
    ],
)
def test_plain_damage(packed: bytes, tmp_path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        check_litertlm(write(tmp_path, damage(packed)))


def set_all(sections: Any, **values: object) -> None:
    for each in sections.sectionMetadata.objects:
        for name, value in values.items():
            setattr(each, name, value)


def only(sections: Any, kind: int) -> Any:
    (found,) = (each for each in sections.sectionMetadata.objects if each.dataType == kind)
    return found


def shorten(sections: Any, kind: int, count: int) -> None:
    only(sections, kind).endOffset -= count


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda sections: sections.sectionMetadata.objects.pop(), "one model, one tokenizer and one description"),
        (lambda sections: set_all(sections, dataType=MODEL), "one model, one tokenizer and one description"),
        (lambda sections: setattr(sections, "sectionMetadata", None), "one model, one tokenizer and one description"),
        (lambda sections: set_all(sections, endOffset=1 << 62), "a section lies at bytes"),
        (lambda sections: set_all(sections, beginOffset=0), "a section lies at bytes 0"),
        (lambda sections: set_all(sections, beginOffset=16 << 10), "a section lies at bytes 16384"),
        (lambda sections: setattr(only(sections, METADATA), "beginOffset", (16 << 10) + 4), "a section lies at bytes 16388"),
        (lambda sections: setattr(only(sections, MODEL), "endOffset", 16 << 10), "a section lies at bytes"),
        (lambda sections: shorten(sections, TOKENIZER, 4), "its tokenizer does not unpack to the"),
        (lambda sections: shorten(sections, MODEL, 5000), "a buffer's bytes lie behind the file's end"),
        (lambda sections: setattr(sections.systemMetadata.entries[0], "valueType", 5), "something else than text"),
    ],
)
def test_sections_that_are_not_there(packed: bytes, tmp_path: Path, damage: Callable[[Any], object], words: str) -> None:
    sections = listed(packed)
    damage(sections)
    with pytest.raises(BundleError, match=words):
        check_litertlm(write(tmp_path, relisted(packed, sections)))


def test_the_model_inside_is_looked_through(packed: bytes, tmp_path: Path) -> None:
    first = section(packed, MODEL).beginOffset
    with pytest.raises(BundleError, match=r"not a sound \.litertlm: an offset leads to byte"):
        check_litertlm(write(tmp_path, packed[:first] + b"\xff\xff\xff\x7f" + packed[first + 4 :]))
    with pytest.raises(BundleError, match=r"not a sound \.litertlm: it does not begin as one"):
        check_litertlm(write(tmp_path, packed[: first + 4] + b"XXXX" + packed[first + 8 :]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0" * 8, "has 0 bytes"),
        (b"\xff" * 8, "has 18446744073709551615 bytes"),
        (struct.pack("<Q", 100) + b"no zlib", "does not unpack"),
        (struct.pack("<Q", 100) + zlib.compress(bytes(101)), "to the 100 bytes"),
        (struct.pack("<Q", 100) + zlib.compress(bytes(99)), "to the 100 bytes"),
        (struct.pack("<Q", 100) + zlib.compress(bytes(100))[:-6], "does not unpack"),
    ],
)
def test_a_tokenizer_that_is_not_what_it_says(packed: bytes, tmp_path: Path, content: bytes, words: str) -> None:
    place = section(packed, TOKENIZER)
    damaged = (
        packed[: place.beginOffset] + content.ljust(place.endOffset - place.beginOffset, b"\0") + packed[place.endOffset :]
    )
    with pytest.raises(BundleError, match=words):
        check_litertlm(write(tmp_path, damaged))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
@example(places=[(0.0, True, b"\xff" * 8)])
def test_any_damage_is_an_error_of_ours_or_none(packed: bytes, tmp_path: Path, places: list[tuple[float, bool, bytes]]) -> None:
    """At the front, where the list of sections is, and anywhere."""
    damaged = bytearray(packed)
    for where, front, value in places:
        at = int(where * (1024 if front else len(packed) - 9))
        damaged[at : at + len(value)] = value
    try:
        check_litertlm(write(tmp_path, bytes(damaged)))
    except BundleError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), begin=st.sampled_from([b"", b"LITERTLM", b"LITERTLM\1\0\0\0\7\0\0\0\0\0\0\0\0\0\0\0"]))
def test_garbage_is_an_error_of_ours(tmp_path: Path, content: bytes, begin: bytes) -> None:
    with pytest.raises(BundleError, match=r"not a sound \.litertlm"):
        check_litertlm(write(tmp_path, begin + content))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        check_litertlm(tmp_path / "nothing")
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        check_litertlm(tmp_path)
