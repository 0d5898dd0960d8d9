"""The rows of a browser: what they are called, and how many threads they have."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from edgellm.benchmarks.browser import lanes
from edgellm.benchmarks.browser.device import Gpu, Hello
from edgellm.benchmarks.report.contents import document
from edgellm.benchmarks.report.document import Table
from edgellm.benchmarks.result import Lane, Settings
from edgellm.cli._bench_table import table
from tests.runs import a_lane, a_run

HELLO = Hello("kitchen", "Chrome/143.0", cores=4, isolated=True, relaxed=True, gpu=Gpu(description="Adreno 740"))


def browser_lanes(hello: Hello, threads: tuple[int, ...] = (1, 2), runtime: str = "onnx") -> list[Lane]:
    entry = lanes.Entry(None, a_lane(runtime=runtime), runtime, (), (), ())  # type: ignore[arg-type]
    return lanes.in_browser(entry, hello, Settings(threads=threads))


def test_a_row_is_of_the_browser_and_names_its_library() -> None:
    onnx, tflite = browser_lanes(HELLO), browser_lanes(HELLO, runtime="tflite")
    every = [*onnx, *tflite]
    assert {lane.runtime for lane in every} == {"browser"}
    assert [lane.engine for lane in every] == ["onnxruntime-web"] * 3 + ["litert.js"] * 2
    assert [lane.device for lane in onnx] == [
        "onnxruntime-web on wasm, 1 thread",
        "onnxruntime-web on wasm, 2 threads",
        "onnxruntime-web on WebGPU: Adreno 740",
    ]
    assert [lane.device for lane in tflite] == ["litert.js on wasm, 1 thread", "litert.js on wasm, 2 threads"]
    assert len({lane.id for lane in every}) == len(every)


@pytest.mark.parametrize("counts", [(1,), (1, 2, 4)])
def test_tables_and_the_report_tell_them_apart(counts: tuple[int, ...]) -> None:
    """Few lanes are columns, and many are rows."""
    every = [*browser_lanes(HELLO, counts), *browser_lanes(HELLO, counts, "tflite")]
    run = dataclasses.replace(a_run(every, trials=2), host="kitchen")
    console = Console(file=io.StringIO(), width=300)
    console.print(table(run))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(lane.device in text for lane in every)
    (headline,) = [
        block for each in document([run]).sections if each.id == "headline" for block in each.blocks if isinstance(block, Table)
    ]
    labels = [row.name for group in headline.groups for row in group.rows]
    assert labels == [lane.device for lane in every]


def test_litert_has_threads_only_where_wasm_has_relaxed_simd() -> None:
    """Its build for other browsers has none, and it would refuse them."""
    hello = dataclasses.replace(HELLO, relaxed=False)
    assert [lane.threads for lane in browser_lanes(hello, (1, 2), "tflite")] == [1]
    assert [lane.threads for lane in browser_lanes(hello, (0,), "tflite")] == [1]
    assert [lane.threads for lane in browser_lanes(hello)] == [1, 2, 1]
    assert [lane.threads for lane in browser_lanes(HELLO, (0,), "tflite")] == [4]


def test_a_browser_that_does_not_isolate_the_page_has_one_thread() -> None:
    hello = dataclasses.replace(HELLO, isolated=False, gpu=None)
    assert [lane.threads for lane in browser_lanes(hello)] == [1]
