"""The tables and the picture of quality against speed, out of a run made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.benchmarks.frontier import plot, table
from edgellm.benchmarks.peers.lanes import label
from edgellm.benchmarks.result import Moment, Run
from edgellm.errors import ResourceError, RuntimeUnavailable, UsageError
from tests.frontier_run import BEST, CLOSER, FINE, LONG, OURS, TIED, decoded, judged, lane, made


@pytest.fixture
def run() -> Run:
    return made()


def rows(text: str, threads: str) -> list[list[str]]:
    """Cells of all table rows under the heading with so many threads."""
    (part,) = [part for part in text.split("\n## ") if part.partition("\n")[0].endswith(f", {threads}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")]


def test_files_by_closeness_with_their_bits_and_the_frontier_in_bold(run: Run) -> None:
    files = [row for row in rows(table.markdown(run), "1 thread") if ":" in row[0] and len(row) == 8]
    assert [row[0] for row in files] == [CLOSER, FINE, OURS, TIED, BEST]
    by_name = {row[0]: row[1:] for row in files}
    assert by_name[OURS][:4] == ["5.12 (4.62)", "3", "0.1000 ± 0.0100", "0.900"]
    assert by_name[OURS][4:] == ["1000 (900-1100)", "150 (140-160)", "70 (60-80)"]
    assert by_name[BEST][0] == "4.50"
    assert by_name[CLOSER][0] == "-"  # a run of before, or a file that cannot be read
    assert by_name[BEST][5:] == ["**110 (100-120)**", "50 (40-60)"]  # the fastest after 32; after 1024 closer ones are faster
    assert by_name[TIED][5:] == ["**100 (90-110)**", "**60 (50-70)**"]
    assert by_name[FINE][5] == "40 (30-50)"  # as CLOSER is faster


def test_ours_beside_the_best_file_that_is_as_close(run: Run) -> None:
    """TIED has a KL of .102 beside our .100, in noise; on the frontier our KL lies between CLOSER and TIED."""
    found = {row[1]: row for row in rows(table.markdown(run), "1 thread") if row[0] == "onnx:int4"}
    assert found["32"][2:4] == ["q4_k_m-imatrix", "0.1000 / 0.1020"]
    value, low, high = figures(found["32"][4])
    assert (value, found["32"][4][:2]) == (1.50, "**")  # 150 / 100, 140 / 90, 160 / 110
    assert 1 < low < 1.45
    assert high > 1.56
    between, low, high = figures(found["32"][5])
    assert 1.50 < between < 1.55
    assert low < between < high
    assert figures(found["1024"][4])[0] == 1.17


def figures(cell: str) -> list[float]:
    """A ratio, and its interval's ends."""
    found = re.fullmatch(r"(?:\*\*)?([\d.]+) \(([\d.]+)-([\d.]+)\)(?:\*\*)?", cell)
    assert found, cell
    return [float(each) for each in found.groups()]


def test_a_ratio_whose_interval_holds_1_is_not_bold(run: Run) -> None:
    """Ours 10, 60 and 90 after 1024 tokens, where theirs is steady at 60."""
    speeds = {1: 10.0, 2: 60.0, 3: 90.0}
    samples = (
        decoded(lane(OURS), LONG, each.round, speeds[each.round]) if (each.lane, each.case) == (lane(OURS).id, LONG)
        else decoded(lane(TIED), LONG, each.round, 60.0) if (each.lane, each.case) == (lane(TIED).id, LONG)
        else each
        for each in run.samples
    )  # fmt: skip
    found = {row[1]: row for row in rows(table.markdown(replace(run, samples=tuple(samples))), "1 thread")}
    value, low, high = figures(found["1024"][4])
    assert low < value == 1.0 < high
    assert "*" not in found["1024"][4]
    assert "**" in found["32"][4]


def closer(run: Run, kl: float) -> Run:
    """The run, with ours as close as that."""
    lanes = (replace(each, quality=judged(*4 * [kl])) if label(each) == OURS else each for each in run.lanes)
    return replace(run, lanes=tuple(lanes))


def test_where_no_file_is_as_close(run: Run) -> None:
    text = table.markdown(closer(run, 0.001))
    found = [row for row in rows(text, "1 thread") if row[0] == "onnx:int4"]
    assert [row[2:] for row in found] == 2 * [["none is as close", "0.0010 / 0.0100", "-", "-"]]


def test_the_lead_table_has_both_ratios_of_every_case_beside_the_aim(run: Run) -> None:
    """Speeds after 32 tokens are 150 beside 100, twice that at two threads; after 1024 they are 70 beside 60."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.lead(run).splitlines() if line]
    assert lines[0] == ["edgellm", "KL", "after 32, 1 / 2 threads", "after 1024, 1 / 2 threads", "1.3 times reached (surely)"]
    (row,) = lines[2:]
    assert row[:2] == ["onnx:int4", "0.1000 ± 0.0100"]
    lines = [line for line in rows(table.markdown(run), "1 thread") if line[0] == "onnx:int4"]
    between = {line[1]: f"**{figures(line[5])[0]:.2f}**" for line in lines}
    assert row[2] == f"**1.50** / **1.50** ({between['32']} / {between['32']})"
    assert row[3].startswith(f"**1.17** / **1.17** ({between['1024']} / ")
    assert row[4] == "2 of 4 (0)"
    assert table.lead(closer(run, 0.001)).splitlines()[2].endswith("| - / - (- / -) | no file of llama.cpp's is as close |")


def test_without_ours_or_theirs_there_are_no_ratios(run: Run) -> None:
    for engine in ("edgellm", "llama.cpp"):
        some = replace(run, lanes=tuple(each for each in run.lanes if each.engine != engine))
        text = table.markdown(some)
        assert "best file as close" not in text
        assert "| file | bits |" in text


def test_a_busy_machine_and_what_is_left_out_are_said(run: Run) -> None:
    text = table.markdown(replace(run, moments=(Moment(0.0, 2.0),)))
    assert "**Not a quiet machine** (load average 2.00)" in text
    assert "- tiny, llama.cpp:q6_k: it broke" in text
    assert "`python -m edgellm.benchmarks.frontier --trials 3`" in text


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_run_gives_the_same_picture(kind: str, run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot.draw(run, tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"one.{kind}").read_bytes()
    assert first == (tmp_path / f"two.{kind}").read_bytes()
    plot.draw(closer(run, 0.09), tmp_path / f"other.{kind}")
    assert first != (tmp_path / f"other.{kind}").read_bytes()


def test_the_picture_names_files_and_cases_and_no_date(run: Run, tmp_path: Path) -> None:
    plot.draw(run, tmp_path / "it.svg")
    text = (tmp_path / "it.svg").read_text(encoding="utf-8")
    for part in (
        "tiny, 1 thread, after 32 tokens",
        "tiny, 2 threads, after 1024 tokens",
        ">int4<",
        ">q4_k_m-imatrix<",
        ">q4_0<",
    ):
        assert part in text
    assert text.count(">q5_0<") == 0  # on no frontier
    assert not re.search(r"20\d\d-\d\d-\d\d|dc:date", text)
    assert len(text) < 100_000


def test_pictures_that_cannot_be_drawn(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown kind of picture; choose one of \.svg, \.png"):
        plot.draw(run, tmp_path / "it.pdf")
    with pytest.raises(ResourceError, match="choose another file"):
        plot.draw(run, tmp_path / "nowhere" / "it.svg")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'edgellm\[report\]', or write Markdown"):
        plot.check(tmp_path / "it.svg")
    assert list(tmp_path.iterdir()) == []
