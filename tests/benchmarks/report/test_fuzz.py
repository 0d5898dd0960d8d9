"""Runs with parts missing and with names of any kind: a report is always made, and always escaped."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.benchmarks.report import to_html, to_markdown
from edgellm.benchmarks.result import Case, Lane, Moment, Probe, Quality, Run, Sample, Settings
from tests.benchmarks.report.pages import markdown_tables, read
from tests.runs import MACHINE, a_lane

NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "<b>x</b>", "x" * 400, "שלום עולם", "مرحبا‮", "🦙🦙", "a|b", "$x$", "\x00\ud800", "a, b", "`", "  "]),
)
TIMES = st.floats(1e-6, 1e4)
MAYBE = st.one_of(st.none(), st.floats(0, 1e12))
COUNTS = st.one_of(st.none(), st.integers(0, 1 << 40))
CASES = [
    Case("load"),
    Case("load", state="cold"),
    Case("prefill", prompt=128),
    Case("prefill", prompt=512),
    Case("decode", depth=0, steps=4),
    Case("decode", depth=1024, steps=4),
    Case("first token", prompt=128, state="cold"),
    Case("first token", prompt=128),
    Case("first token", prompt=512, state="cached"),
    Case("chain", prompt=128, steps=4),
    Case("sustained"),
]
QUALITIES = st.builds(Quality, NAMES, st.floats(0, 20), st.floats(0, 1), st.floats(0, 1))


@st.composite
def lanes(draw: st.DrawFn) -> Lane:
    lane = a_lane(model=draw(NAMES), variant=draw(NAMES), runtime=draw(st.sampled_from(["onnx", "tflite", ""])))
    return dataclasses.replace(
        lane,
        id=draw(NAMES),
        engine=draw(NAMES),
        source=draw(NAMES),
        digest=draw(NAMES),
        threads=draw(st.integers(1, 4)),
        size=draw(st.integers(0, 1 << 40)),
        bits=draw(MAYBE),
        weight_bytes=draw(COUNTS),
        cache_bytes=draw(COUNTS),
        products=draw(COUNTS),
        fidelity=draw(st.sampled_from([None, lane.fidelity])),
        quality=draw(st.one_of(st.none(), QUALITIES)),
        agreement=draw(st.one_of(st.none(), st.floats(0, 1))),
        failed=draw(st.one_of(st.none(), NAMES)),
        doubts=tuple(draw(st.lists(NAMES, max_size=2))),
    )


@st.composite
def samples(draw: st.DrawFn, ids: list[str]) -> Sample:
    case = draw(st.sampled_from(CASES))
    steps = tuple(draw(st.lists(TIMES, max_size=4)))
    parts = draw(st.dictionaries(st.sampled_from(["template", "decode", "prefill", "other"]), TIMES, max_size=3))
    return Sample(
        draw(st.sampled_from(ids)), case, draw(st.integers(0, 3)), draw(st.floats(0, 100)), draw(TIMES), steps, parts,
        draw(MAYBE), draw(COUNTS), draw(COUNTS), draw(MAYBE), draw(MAYBE), draw(MAYBE), draw(MAYBE),
    )  # fmt: skip


MOMENTS = st.builds(Moment, st.floats(0, 1e3), MAYBE, MAYBE, NAMES, MAYBE, MAYBE, MAYBE, st.one_of(st.none(), NAMES))
PROBES = st.builds(
    Probe, st.sampled_from(["bandwidth", "int8"]), st.integers(1, 4), st.integers(0, 3), st.just(0.0), st.floats(1e3, 1e12)
)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    every = draw(st.lists(lanes(), max_size=3, unique_by=lambda lane: lane.id))
    some = st.lists(samples([lane.id for lane in every]), max_size=25) if every else st.just([])
    return Run(
        started=draw(NAMES),
        command=draw(NAMES),
        version="0.1.0",
        machine=dataclasses.replace(MACHINE, cpu=draw(NAMES), features=None, memory=None),
        settings=Settings(),
        lanes=tuple(every),
        samples=tuple(draw(some)),
        probes=tuple(draw(st.lists(PROBES, max_size=3))),
        moments=tuple(draw(st.lists(MOMENTS, max_size=4))),
        energy=draw(st.one_of(st.none(), NAMES)),
        complete=draw(st.booleans()),
        doubts=tuple(draw(st.lists(NAMES, max_size=1))),
        notes=tuple(draw(st.lists(NAMES, max_size=1))),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(runs(), min_size=1, max_size=2))
def test_markdown_of_any_run(some: list[Run]) -> None:
    text = to_markdown(some)
    text.encode("utf-8")
    assert all(len({len(row) for row in table}) == 1 for table in markdown_tables(text))
    assert not re.search(r"(?<!\\)<", re.sub(r"(?s)```.*?```", "", text))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(runs(), min_size=1, max_size=2))
def test_html_of_any_run(some: list[Run]) -> None:
    text = to_html(some)
    text.encode("utf-8")
    page = read(text)
    assert not {"b", "script", "img"} & {tag for tag, _ in page.elements}
    assert all(len(row) <= len(table[0]) for table in page.tables for row in table)
