"""A run and its file: what is written is read, and what is damaged is refused, by `read` and by the schema."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import os
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.benchmarks import result, result_schema
from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.result import Case, Lane, Moment, Probe, Quality, Run, Sample, Settings
from edgellm.card import GraphCard
from edgellm.errors import ResourceError, UsageError
from tests.runs import a_lane, a_run

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "benchmarks" / "result.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

texts = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
above = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
counts = st.integers(0, 1 << 50)
names = st.dictionaries(texts, texts, max_size=3)
cases = st.builds(
    Case, st.sampled_from(typing.get_args(result.Kind)), counts, counts, counts, st.sampled_from(["cold", "warm", "cached"])
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=3).map(tuple)


lanes = st.builds(
    Lane,
    texts,
    texts,
    texts,
    texts,
    texts,
    texts,
    counts,
    texts,
    counts,
    maybe(numbers),
    maybe(counts),
    maybe(counts),
    maybe(counts),
    names,
    maybe(st.builds(GraphCard, st.just("passed"), texts)),
    maybe(st.builds(Quality, texts, numbers, numbers, numbers, several(numbers))),
    maybe(numbers),
    maybe(texts),
    several(texts),
)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    rows = draw(st.lists(lanes, min_size=1, max_size=3, unique_by=lambda lane: lane.id))
    samples = st.builds(
        Sample,
        st.sampled_from([lane.id for lane in rows]),
        cases,
        counts,
        numbers,
        above,
        several(above),
        st.dictionaries(texts, numbers, max_size=3),
        maybe(numbers),
        maybe(counts),
        maybe(counts),
        maybe(numbers),
        maybe(numbers),
        maybe(numbers),
        maybe(numbers),
        several(counts),
    )
    moments = st.builds(
        Moment, numbers, maybe(numbers), maybe(numbers), texts, maybe(numbers), maybe(numbers), maybe(numbers), maybe(texts)
    )
    probes = st.builds(Probe, st.sampled_from(["bandwidth", "int8"]), counts, counts, numbers, numbers)
    machines = st.builds(Machine, texts, texts, texts, maybe(several(texts)), counts, maybe(counts), texts)
    wanted = st.builds(Settings, several(counts), several(counts), several(counts), counts, counts, numbers, counts)
    return Run(
        draw(texts),
        draw(texts),
        draw(texts),
        draw(machines),
        draw(wanted),
        tuple(rows),
        draw(several(samples)),
        draw(several(probes)),
        draw(several(moments)),
        draw(maybe(texts)),
        draw(st.booleans()),
        draw(several(texts)),
    )


@given(runs())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_written_is_read(tmp_path: Path, run: Run) -> None:
    result.write(run, tmp_path / "run.json")
    assert result.read(tmp_path / "run.json") == run
    VALIDATOR.validate(json.loads((tmp_path / "run.json").read_text(encoding="utf-8")))


def test_a_file_has_a_line_for_each_sample(tmp_path: Path) -> None:
    run = a_run([a_lane(), a_lane(runtime="tflite")])
    result.write(run, tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert sum(line.startswith('  {"lane": ') for line in text.splitlines()) == len(run.samples)
    assert text.startswith('{\n "schema": 1,\n "kind": "edgellm benchmark run",\n')
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


BY_HAND: dict[str, Any] = {
    "schema": 1,
    "kind": "edgellm benchmark run",
    "started": "2026-11-30T12:00:00+00:00",
    "command": "edgellm bench tiny",
    "version": "0.1.0",
    "machine": {
        "system": "Linux",
        "architecture": "aarch64",
        "cpu": "Cortex-A76",
        "features": ["neon"],
        "cores": 4,
        "memory": None,
        "python": "3.11",
    },
    "settings": {"trials": 1},
    "lanes": [
        {
            "id": "tiny onnx 2",
            "engine": "edgellm",
            "model": "tiny",
            "source": "tiny",
            "variant": "int4",
            "runtime": "onnx",
            "threads": 2,
            "digest": "ab",
            "size": 1000,
            "bits": 4,
        }
    ],
    "samples": [
        {
            "lane": "tiny onnx 2",
            "case": {"kind": "decode", "steps": 2},
            "round": 1,
            "at": 0,
            "seconds": 0.3,
            "steps": [0.1, 0.2],
        },
    ],
}


def put(*path: str | int) -> Callable[[Any, object], None]:
    def change(value: Any, entry: object) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = entry

    return change


DAMAGES: list[tuple[tuple[str | int, ...], object]] = [
    (("kind",), "edgellm report"),
    (("schema",), 2),
    (("schema",), "1"),
    (("started",), 5),
    (("surprise",), 5),
    (("machine",), None),
    (("machine", "cores"), 2.5),
    (("machine", "cores"), True),
    (("settings", "trials"), "five"),
    (("settings", "threads"), 2),
    (("lanes",), {}),
    (("lanes", 0, "bits"), "4"),
    (("lanes", 0, "colour"), "red"),
    (("lanes", 0, "quality"), {"text": "a", "kl": 0.1}),
    (("lanes", 0, "fidelity"), {"verdict": "splendid", "reason": ""}),
    (("samples", 0, "case"), "decode"),
    (("samples", 0, "case", "kind"), "encode"),
    (("samples", 0, "case", "state"), "hot"),
    (("samples", 0, "round"), -1),
    (("samples", 0, "seconds"), 0),
    (("samples", 0, "seconds"), -0.1),
    (("samples", 0, "steps"), [0.1, 0.0]),
    (("samples", 0, "parts"), [0.1]),
    (("samples", 0, "tokens"), ["a"]),
    (("probes",), [{"what": "luck", "threads": 1, "round": 0, "at": 0, "value": 1}]),
    (("moments",), [{"at": "noon"}]),
    (("complete",), 1),
    (("doubts",), "none"),
]


def damaged(path: tuple[str | int, ...], entry: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(BY_HAND))
    put(*path)(value, entry)
    return value


def stored(tmp_path: Path, value: object) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(value), encoding="utf-8")
    return tmp_path / "run.json"


def test_a_run_written_by_hand_is_valid(tmp_path: Path) -> None:
    VALIDATOR.validate(BY_HAND)
    run = result.read(stored(tmp_path, BY_HAND))
    assert (run.samples[0].steps, run.lanes[0].bits, run.settings.prompts, run.complete) == ((0.1, 0.2), 4.0, (128, 512), True)


@pytest.mark.parametrize(("path", "entry"), DAMAGES, ids=lambda value: str(value)[:40])
def test_what_is_damaged_is_refused_by_both(tmp_path: Path, path: tuple[str | int, ...], entry: object) -> None:
    value = damaged(path, entry)
    assert not VALIDATOR.is_valid(value)
    with pytest.raises(UsageError, match=r"run\.json: "):
        result.read(stored(tmp_path, value))


REQUIRED = [
    *((name,) for name in BY_HAND),
    *(("machine", name) for name in BY_HAND["machine"]),
    *(("lanes", 0, name) for name in BY_HAND["lanes"][0] if name != "bits"),
    *(("samples", 0, name) for name in BY_HAND["samples"][0] if name != "steps"),
    ("samples", 0, "case", "kind"),
]


@pytest.mark.parametrize("path", REQUIRED, ids=str)
def test_what_is_missing_is_missed_by_both(tmp_path: Path, path: tuple[str | int, ...]) -> None:
    value: Any = json.loads(json.dumps(BY_HAND))
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    assert not VALIDATOR.is_valid(value)
    with pytest.raises(UsageError):
        result.read(stored(tmp_path, value))


def test_a_later_schema_asks_for_a_later_edgellm(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a run of schema 2, and this edgellm reads 1; upgrade edgellm"):
        result.read(stored(tmp_path, {**BY_HAND, "schema": 2, "novelty": 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((("samples", 0, "lane"), "another"), r"'samples\[0\]' is of no lane"),
        ((("lanes",), [BY_HAND["lanes"][0]] * 2), "two lanes have one id"),
        ((("samples", 0, "seconds"), 0), r"'samples\[0\]' has a time or a round that cannot be"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, change: tuple[Any, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        result.read(stored(tmp_path, damaged(*change)))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'{"kind": []}'])
def test_what_is_no_run_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"run\.json: (cannot be read: no JSON|no benchmark run); give a file"):
        result.read(tmp_path / "run.json")
    with pytest.raises(UsageError, match="No such file"):
        result.read(tmp_path / "other.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_written(tmp_path: Path, value: float) -> None:
    run = dataclasses.replace(a_run(), probes=(Probe("int8", 1, 0, 0.0, value),))
    with pytest.raises(ValueError, match="JSON"):
        result.write(run, tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_file_that_fits_no_disk_leaves_the_old_one(tmp_path: Path) -> None:
    """The disk is a limit on the size of files, in a process of its own."""
    path = tmp_path / "run.json"
    result.write(a_run(trials=1), path)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys\n"
        "from edgellm.benchmarks import result\nfrom edgellm.errors import ResourceError\nfrom tests.runs import a_run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n    result.write(a_run(), sys.argv[1])\nexcept ResourceError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{path}: cannot write: {os.strerror(errno.EFBIG)}; choose another file\n"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_takes_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write: No such file or directory; choose another file"):
        result.write(a_run(trials=1), tmp_path / "none" / "run.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        result.write(a_run(trials=1), tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_the_committed_schema_is_that_of_the_code() -> None:
    text = (ROOT / "benchmarks" / "result.schema.json").read_text(encoding="utf-8")
    assert text == result_schema.to_text(), "python -m edgellm.benchmarks.result_schema > benchmarks/result.schema.json"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def classes(cls: Any = Run) -> Iterator[Any]:
    """Every dataclass that a run is made of."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        for each in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(each):
                yield from classes(each)


@pytest.mark.parametrize("cls", dict.fromkeys(classes()), ids=lambda cls: cls.__name__)
def test_every_field_is_described(cls: Any) -> None:
    """In a table of its own part, and nothing there that the class does not have."""
    page = (ROOT / "docs" / "bench-result.md").read_text(encoding="utf-8")
    parts = [part for part in page.split("\n## ")[1:] if f"`{cls.__name__}`" in part.splitlines()[0]]
    assert len(parts) == 1, f"no part of the page, or more than one, has `{cls.__name__}` in its title"
    rows = [line.split("|") for line in parts[0].splitlines() if line.startswith("| `")]
    described = [name.strip(" `") for row in rows for name in row[1].split(",")]
    assert sorted(described) == sorted(field.name for field in dataclasses.fields(cls))
    assert all(len(row[2].strip()) > 3 for row in rows)
    assert inspect.getdoc(cls)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case("load"), "load"),
        (Case("load", state="cold"), "load, cold"),
        (Case("prefill", prompt=512), "prefill 512"),
        (Case("decode", depth=1024, steps=64), "decode after 1024"),
        (Case("first token", prompt=128, state="cached"), "first token after 128, cached"),
        (Case("chain", prompt=128, steps=64), "chain after 128"),
        (Case("sustained"), "sustained"),
    ],
)
def test_cases_have_names(case: Case, name: str) -> None:
    assert case.name == name
