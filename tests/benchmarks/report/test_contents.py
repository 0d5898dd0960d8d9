"""What a report says of runs whose figures are known."""

from __future__ import annotations

import dataclasses

import pytest

from edgellm.benchmarks.report.charts import Bars, Chart, Lines, Marks
from edgellm.benchmarks.report.contents import document
from edgellm.benchmarks.report.document import Document, Facts, Row, Table, Text
from edgellm.benchmarks.result import Case, Probe, Quality, Run, Sample
from tests.runs import a_lane, a_run

DECODE, DEEP = Case("decode", depth=0, steps=4), Case("decode", depth=100, steps=4)
PREFILL = Case("prefill", prompt=100)


def a_sample(lane: str, case: Case, number: int, seconds: float, **more: object) -> Sample:
    """Its steps take as long as each other."""
    steps = tuple([seconds / case.steps] * case.steps)
    return dataclasses.replace(Sample(lane, case, number, 0.0, seconds, steps), **more)  # type: ignore[arg-type]


def known(*lanes: str, **seconds: tuple[float, ...]) -> Run:
    """Lanes whose decode of 4 steps took so many seconds, round by round; the first is the warm-up."""
    run = a_run([a_lane(id=lane, variant=lane, products=10, weight_bytes=600, cache_bytes=0) for lane in lanes], trials=1)
    samples = [a_sample(lane, DECODE, number, each) for lane in lanes for number, each in enumerate(seconds.get(lane, ()))]
    return dataclasses.replace(run, samples=tuple(samples), probes=(), moments=())


def section(found: Document, name: str) -> list[object]:
    """The blocks of a section; an empty list where there is none."""
    return [block for each in found.sections if each.id == name for block in each.blocks]


def table(found: Document, name: str) -> Table:
    (only,) = [block for block in section(found, name) if isinstance(block, Table)]
    return only


def rows(found: Document, name: str) -> dict[str, Row]:
    return {row.name: row for group in table(found, name).groups for row in group.rows}


def texts(found: Document, name: str) -> str:
    return " ".join(block.text for block in section(found, name) if isinstance(block, Text))


def cells(found: Document, name: str, row: str) -> dict[str, tuple[str, str]]:
    head = table(found, name).head[1:]
    return {title: (cell.text, cell.note) for title, cell in zip(head, rows(found, name)[row].cells, strict=True)}


def test_the_headline_has_medians_with_their_spread_and_no_warm_up() -> None:
    found = document([known("a", "b", a=(9.0, 0.04, 0.02, 0.08), b=(9.0, 0.1))])
    assert cells(found, "headline", "a")["decode after 0, tok/s"] == ("100", "50.0 to 200")
    assert cells(found, "headline", "b")["decode after 0, tok/s"] == ("40.0", "")


def test_the_warm_up_stands_apart_with_its_ratio() -> None:
    found = document([known("a", "b", a=(0.08, 0.04, 0.04), b=(0.08, 0.04))])
    assert cells(found, "warm-up", "a")["decode after 0, warm-up"] == ("50.0", "0.50×")
    (chart,) = [block for block in section(found, "warm-up") if isinstance(block, Chart)]
    (panel,) = chart.panels
    assert isinstance(panel, Lines)
    assert panel.shaded is not None
    assert [(point.x, round(point.y)) for point in panel.lines[0].points] == [(0, 50), (1, 100), (2, 100)]


def test_the_share_of_the_limit_is_of_the_best_probe() -> None:
    run = known("a", a=(1.0, 0.04))
    probes = tuple(Probe("bandwidth", 2, number, 0.0, value) for number, value in enumerate((90e3, 120e3, 100e3)))
    found = document([dataclasses.replace(run, probes=probes)])
    assert cells(found, "limit", "onnx")["decode after 0, of the bandwidth"][0] == "50 %"
    (chart,) = [block for block in section(found, "limit") if isinstance(block, Chart)]
    (panel,) = chart.panels
    assert isinstance(panel, Bars)
    assert (panel.limit or (0,))[0] == 1.0
    assert "over 100 %" not in texts(found, "limit")


def test_a_share_over_all_of_it_is_explained() -> None:
    run = known("a", a=(1.0, 0.04))
    found = document([dataclasses.replace(run, probes=(Probe("bandwidth", 2, 1, 0.0, 50e3),))])
    assert "⚠ onnx: more than memory gives" in texts(found, "limit")


def test_a_failed_lane_is_a_row_with_its_reason_and_stands_among_the_doubts() -> None:
    lanes = [a_lane(), a_lane(runtime="tflite", failed="its output was wrong")]
    found = document([a_run(lanes, trials=2)])
    row = rows(found, "headline")["tflite"]
    assert (row.cells, row.reason) == ((), "✗ failed: its output was wrong")
    assert "tflite has no result: its output was wrong" in found.doubts
    assert "tflite" not in rows(found, "decode")
    assert "tflite" not in rows(found, "warm-up")


def test_doubts_stand_at_the_top_and_at_every_row_that_they_are_about() -> None:
    lanes = [a_lane(), a_lane(runtime="tflite", doubts=("another process was busy",))]
    found = document([a_run(lanes, trials=2, sustained=20.0)])
    assert found.doubts == ("tflite: another process was busy",)
    assert rows(found, "headline")["tflite"].notes == ("⚠ doubtful: another process was busy",)
    for name in ("decode", "prefill", "first-token", "latency", "sustained", "memory", "chain", "limit", "quality", "energy"):
        found_rows = rows(found, name)
        assert found_rows["tflite"].notes == ("⚠ doubtful",), name
        assert found_rows["onnx"].notes == (), name
    assert rows(found, "ratios")["tflite / onnx"].notes == ("⚠ doubtful",)


def test_a_doubt_about_the_run_marks_every_row() -> None:
    run = dataclasses.replace(
        a_run([a_lane(), a_lane(runtime="tflite")], trials=2), doubts=("an emulated host",), complete=False
    )
    found = document([run])
    assert "an emulated host" in found.doubts
    assert any("interrupted" in doubt for doubt in found.doubts)
    assert all(row.notes for name in ("headline", "decode", "ratios") for row in rows(found, name).values())


def test_peers_beside_a_bundle_are_called_by_what_they_are() -> None:
    peers = [a_lane(model="SmolLM2.Q4_1", engine=name, variant="q4_0") for name in ("llama.cpp", "openvino")]
    found = rows(document([a_run([a_lane(), a_lane(runtime="tflite"), *peers], trials=1)]), "headline")
    assert list(found) == ["smollm2, onnx, int4", "smollm2, tflite, int4", "llama.cpp, q4_0", "openvino, q4_0"]


def test_an_emulated_board_has_a_row_and_no_speeds() -> None:
    real = a_run(trials=2)
    board = dataclasses.replace(
        real, host="kitchen", machine=dataclasses.replace(real.machine, emulated="aarch64 is emulated on x86 here")
    )
    found = document([real, board])
    headline = table(found, "headline")
    groups = {group.title: group.rows for group in headline.groups}
    (title,) = (each for each in groups if each.startswith("kitchen: "))
    (row,) = groups[title]
    assert row.notes == ("⚠ emulated: its output counts, 100 % of its steps confirmed, and its times do not",)
    numbers = {head: cell.text for head, cell in zip(headline.head[1:], row.cells, strict=True)}
    assert {head for head, text in numbers.items() if text != "–"} == {"file", "KL, nats"}


def test_one_doubt_about_many_lanes_is_said_once() -> None:
    lanes = [a_lane(runtime=name, doubts=("the clock was held down",)) for name in ("onnx", "tflite")]
    assert document([a_run(lanes, trials=1)]).doubts == ("onnx; tflite: the clock was held down",)


def test_there_is_a_verdict_only_where_the_interval_clears_one() -> None:
    even = [0.04 * factor for factor in (1.0, 1.02, 0.99, 1.01, 0.98, 1.0)]
    found = document([known("a", "b", "c", a=(1.0, *even), b=(1.0, *even[::-1]), c=(1.0, *[each * 2 for each in even]))])
    assert "faster" not in cells(found, "ratios", "b / a")["decode after 0"][1]
    assert "not told apart" in cells(found, "ratios", "b / a")["decode after 0"][1]
    value, note = cells(found, "ratios", "c / a")["decode after 0"]
    assert value == "0.50×"
    assert note.endswith(": slower")


def test_one_round_makes_no_interval_and_no_verdict() -> None:
    found = document([known("a", "b", a=(1.0, 0.04), b=(1.0, 0.02))])
    assert cells(found, "ratios", "b / a")["decode after 0"] == ("2.00×", "too few rounds for an interval")


def test_more_threads_are_compared_with_fewer_of_the_same_file() -> None:
    lanes = [a_lane(threads=4), a_lane(threads=1), a_lane(runtime="tflite", threads=4)]
    found = rows(document([a_run(lanes, trials=3)]), "ratios")
    assert set(found) == {"4 threads / 1 thread (onnx)", "tflite / onnx (4 threads)"}


def test_the_histogram_has_every_step_that_counts() -> None:
    run = known("a", a=(1.0, 0.04, 0.05, 0.06))
    (chart,) = [block for block in section(document([run]), "latency") if isinstance(block, Chart)]
    (panel,) = chart.panels
    counts = panel.rows[0][3]  # type: ignore[union-attr]
    assert sum(counts) == 12
    assert cells(document([run]), "latency", "onnx")["p50, after 0"][0] == "12.5"


def test_sustained_speed_says_what_is_kept() -> None:
    case = Case("sustained")
    steps = (*[0.01] * 100, *[0.015] * 800, *[0.02] * 100)
    run = known("a")
    sample = Sample("a", case, 1, 10.0, sum(steps), steps)
    hot = dataclasses.replace(a_run(trials=1).moments[0], at=11.0, celsius=50.0, mhz=1800.0)
    moments = (
        hot,
        dataclasses.replace(hot, at=20.0, celsius=81.0, mhz=1200.0),
        dataclasses.replace(hot, at=90.0, celsius=99.0),
    )
    found = document([dataclasses.replace(run, samples=(sample,), moments=moments)])
    assert cells(found, "sustained", "onnx") == {
        "minutes": ("0.3", ""),
        "first tenth, tok/s": ("100", ""),
        "last tenth, tok/s": ("50.0", ""),
        "kept": ("50 %", ""),
        "hottest, °C": ("81", "from 50"),
        "clock, MHz": ("1,200 to 1,800", ""),
    }
    speed, heat = [block for block in section(found, "sustained") if isinstance(block, Chart)]
    assert isinstance(speed.panels[0], Lines)
    assert len(speed.panels[0].lines[0].points) <= 60
    assert speed.panels[0].lines[0].points[0].y == pytest.approx(100)
    assert [panel.y for panel in heat.panels if isinstance(panel, Lines)] == ["hottest sensor, °C", "clock, MHz"]


def test_sustained_windows_make_one_stretch_and_what_comes_after_a_break_is_not_of_it() -> None:
    case = Case("sustained")
    windows = [(10.0, 0.01, 50.0), (15.1, 0.0125, 60.0), (20.2, 0.02, 70.0), (400.0, 0.5, 99.0)]
    samples = [
        Sample("a", case, number, at, 5.0, (step,) * round(5 / step), celsius=celsius, mhz=1000.0)
        for number, (at, step, celsius) in enumerate(windows, 1)
    ]
    found = document([dataclasses.replace(known("a"), samples=tuple(samples[::-1]))])
    assert cells(found, "sustained", "onnx")["kept"] == ("50 %", "")
    assert cells(found, "sustained", "onnx")["hottest, °C"] == ("70", "from 50")
    speed, heat = [block for block in section(found, "sustained") if isinstance(block, Chart)]
    (line,) = speed.panels[0].lines  # type: ignore[union-attr]
    assert 14 < line.points[-1].x < 15.2
    assert [round(point.x, 1) for point in heat.panels[0].lines[0].points] == [5.0, 10.1, 15.2]  # type: ignore[union-attr]


def test_energy_says_when_there_is_no_counter() -> None:
    assert texts(document([a_run(trials=1, energy=None)]), "energy") == "No counter on this host."
    assert not [block for block in section(document([a_run(trials=1, energy=None)]), "energy") if isinstance(block, Table)]
    assert "decode after 0" in cells(document([a_run(trials=1)]), "energy", "onnx")


def test_kl_of_different_texts_is_said_not_to_compare() -> None:
    lanes = [a_lane(), a_lane(runtime="tflite", quality=Quality("cd" * 32, 0.01, 0.001, 0.9))]
    assert "different texts" in texts(document([a_run(lanes, trials=1)]), "quality")
    assert "different texts" not in texts(document([a_run(trials=1)]), "quality")


def test_a_crowd_of_files_is_drawn_by_number_of_threads() -> None:
    lanes = [a_lane(variant=f"v{number}", id=f"{number} {count}", threads=count) for number in range(6) for count in (1, 2)]
    charts = [block for block in section(document([a_run(lanes, trials=1)]), "quality") if isinstance(block, Chart)]
    assert [chart.title for chart in charts] == ["Quality against speed, 1 thread", "Quality against speed, 2 threads"]
    names = [{line.label for line in chart.panels[0].lines} for chart in charts]  # type: ignore[union-attr]
    assert names == [{f"v{number}" for number in range(6)}] * 2
    (few,) = [block for block in section(document([a_run(lanes[:4], trials=1)]), "quality") if isinstance(block, Chart)]
    assert {line.label for line in few.panels[0].lines} == {  # type: ignore[union-attr]
        f"v{number}, {count}" for number in (0, 1) for count in ("1 thread", "2 threads")
    }


def test_devices_stand_side_by_side_named_by_their_machines() -> None:
    one, two = known("a", "b", a=(1.0, 0.04), b=(1.0, 0.08)), known("a", "b", a=(1.0, 0.02))
    two = dataclasses.replace(two, machine=dataclasses.replace(two.machine, cpu="Cortex-X4", cores=8))
    found = document([one, two])
    assert table(found, "devices").head == ("lane", "Cortex-A76, 4 cores", "Cortex-X4, 8 cores")
    assert [cell.text for cell in rows(found, "devices")["a"].cells] == ["100", "200"]
    assert [cell.text for cell in rows(found, "devices")["b"].cells] == ["50.0", "–"]
    assert [group.title for group in table(found, "decode").groups] == ["Cortex-A76, 4 cores", "Cortex-X4, 8 cores"]
    charts = [block for block in section(found, "devices") if isinstance(block, Chart)]
    panel = charts[0].panels[0]
    assert isinstance(panel, Marks)
    assert panel.signs == ("Cortex-A76, 4 cores", "Cortex-X4, 8 cores")
    assert section(document([one]), "devices") == []


def test_another_file_under_the_same_name_is_told() -> None:
    one, two = known("a", a=(1.0, 0.04)), known("a", a=(1.0, 0.02))
    other = dataclasses.replace(two, lanes=(dataclasses.replace(two.lanes[0], digest="ff" * 32),))
    assert "not the same file" not in texts(document([one, two]), "devices")
    assert "⚠ onnx is not the same file on every device" in texts(document([one, other]), "devices")


def test_several_runs_of_one_machine_have_names_of_their_own() -> None:
    run = known("a", a=(1.0, 0.04))
    later = dataclasses.replace(run, started="2026-12-01T08:00:00+00:00")
    assert len(set(table(document([run, later, later]), "devices").head)) == 4


def test_a_lane_looks_the_same_on_every_machine() -> None:
    one = a_run([a_lane(), a_lane(runtime="tflite")], trials=1)
    two = dataclasses.replace(a_run([a_lane(runtime="tflite"), a_lane()], trials=1), started="later")
    looks = {(row.name, row.look) for group in table(document([one, two]), "decode").groups for row in group.rows}
    assert looks == {("onnx", 0), ("tflite", 1)}


def test_lanes_that_differ_in_nothing_but_their_ids_are_called_by_them() -> None:
    found = document([known("a", "b", a=(1.0, 0.04), b=(1.0, 0.04))])
    same = [dataclasses.replace(lane, variant="int4") for lane in known("a", "b").lanes]
    assert set(rows(found, "headline")) == {"a", "b"}
    assert set(rows(document([a_run(same, trials=1)]), "headline")) == {"a", "b"}


def test_the_end_has_the_machine_the_command_and_every_digest() -> None:
    run = a_run([a_lane(), a_lane(runtime="tflite")], trials=2)
    found = document([dataclasses.replace(run, notes=("cold loads need root",))])
    assert run.command in texts(found, "machine")
    assert "cold loads need root" in texts(found, "machine")
    facts = [block for block in section(found, "lanes") if isinstance(block, Facts)]
    assert [dict(block.entries)["digest (sha256)"] for block in facts] == [lane.digest for lane in run.lanes]
    assert dict(facts[0].entries)["fidelity card"] == "passed its gate: KL .083 is below .15"
    assert dict(facts[0].entries)["versions"] == "edgellm 0.1.0, onnx 1.32.0"


def test_what_is_in_no_run_is_left_out() -> None:
    bare = dataclasses.replace(a_run([a_lane(quality=None, agreement=None)], trials=1), samples=(), probes=(), moments=())
    assert [each.id for each in document([bare]).sections] == ["headline", "energy", "definitions", "machine", "lanes"]


def test_a_case_of_one_depth_is_a_table_without_a_line_of_one_point() -> None:
    assert [type(block) for block in section(document([known("a", a=(1.0, 0.04))]), "decode")] == [Table]


def test_many_lanes_are_drawn_a_few_at_a_time_and_none_is_lost() -> None:
    lanes = [a_lane(variant=f"v{number}", id=f"lane {number}") for number in range(19)]
    found = document([a_run(lanes, trials=1)])
    charts = [block for block in section(found, "decode") if isinstance(block, Chart)]
    lines = [[line.label for line in panel.lines] for chart in charts for panel in chart.panels if isinstance(panel, Lines)]
    assert max(map(len, lines)) <= 8
    assert sorted(label for some in lines for label in some) == sorted(f"v{number}" for number in range(19))
