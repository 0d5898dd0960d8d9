"""The tables and the picture of quality against speed, out of a report made by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks.frontier import plot, table
from edgellm.errors import ResourceError, RuntimeUnavailable, UsageError
from tests.frontier_report import BEST, CLOSER, FINE, OURS, TIED, made


@pytest.fixture
def report() -> dict[str, Any]:
    return made()


def rows(text: str, threads: str) -> list[list[str]]:
    """Cells of all table rows under the heading with so many threads."""
    (part,) = [part for part in text.split("\n## ") if part.partition("\n")[0].endswith(f", {threads}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")]


def test_files_by_closeness_with_their_bits_and_the_frontier_in_bold(report: dict[str, Any]) -> None:
    files = [row for row in rows(table.markdown(report), "1 thread") if ":" in row[0] and len(row) == 8]
    assert [row[0] for row in files] == [CLOSER, FINE, OURS, TIED, BEST]
    by_name = {row[0]: row[1:] for row in files}
    assert by_name[OURS][:4] == ["5.12 (4.62)", "3", "0.1000 ± 0.0100", "0.900"]
    assert by_name[OURS][4:] == ["1000 (900-1100)", "150 (140-160)", "70 (60-80)"]
    assert by_name[BEST][0] == "4.50"
    assert by_name[CLOSER][0] == "-"  # a report of before, or a file that cannot be read
    assert by_name[BEST][5:] == ["**110 (100-120)**", "50 (40-60)"]  # the fastest after 32; after 1024 closer ones are faster
    assert by_name[TIED][5:] == ["**100 (90-110)**", "**60 (50-70)**"]
    assert by_name[FINE][5] == "40 (30-50)"  # as CLOSER is faster


def test_ours_beside_the_best_file_that_is_as_close(report: dict[str, Any]) -> None:
    """TIED has a KL of .102 beside our .100, in noise; on the frontier our KL lies between CLOSER and TIED."""
    found = {row[1]: row for row in rows(table.markdown(report), "1 thread") if row[0] == "onnx:int4"}
    assert found["32"][2:5] == ["q4_k_m-imatrix", "0.1000 / 0.1020", "1.50 (1.45-1.56)"]
    assert 1.50 < float(found["32"][5]) < 1.55
    assert found["1024"][4] == "1.17 (1.14-1.20)"


def test_where_no_file_is_as_close(report: dict[str, Any]) -> None:
    for each in report["quality"]:
        if each["engine"] == OURS:
            each |= {"kl": 0.001, "divergences": [0.001] * 4}
    found = [row for row in rows(table.markdown(report), "1 thread") if row[0] == "onnx:int4"]
    assert [row[2:] for row in found] == 2 * [["none is as close", "0.0010 / 0.0100", "-", "-"]]


def test_without_ours_or_theirs_there_are_no_ratios(report: dict[str, Any]) -> None:
    for prefix in ("edgellm", "llama_cpp"):
        some = {**report, "engines": [each for each in report["engines"] if not each["engine"].startswith(prefix)]}
        text = table.markdown(some)
        assert "best file as close" not in text
        assert "| file | bits |" in text


def test_a_busy_machine_and_what_is_left_out_are_said(report: dict[str, Any]) -> None:
    report["quiet"]["reasons"] = ["load average 2.00"]
    text = table.markdown(report)
    assert "**Not a quiet machine** (load average 2.00)" in text
    assert "- tiny, llama_cpp:q6_k: it broke" in text
    assert "`python -m edgellm.benchmarks.frontier --trials 3`" in text


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_report_gives_the_same_picture(kind: str, report: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot.draw(report, tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"one.{kind}").read_bytes()
    assert first == (tmp_path / f"two.{kind}").read_bytes()
    faster = [each | {"decode_32": 2 * each["decode_32"]} if each["engine"] == OURS else each for each in report["samples"]]
    plot.draw({**report, "samples": faster}, tmp_path / f"other.{kind}")
    assert first != (tmp_path / f"other.{kind}").read_bytes()


def test_the_picture_names_files_and_cases_and_no_date(report: dict[str, Any], tmp_path: Path) -> None:
    plot.draw(report, tmp_path / "it.svg")
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


def test_pictures_that_cannot_be_drawn(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown kind of picture; choose one of \.svg, \.png"):
        plot.draw(report, tmp_path / "it.pdf")
    with pytest.raises(ResourceError, match="choose another file"):
        plot.draw(report, tmp_path / "nowhere" / "it.svg")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(RuntimeUnavailable, match="pip install matplotlib"):
        plot.check(tmp_path / "it.svg")
    assert list(tmp_path.iterdir()) == []
