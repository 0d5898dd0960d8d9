"""Pairs of runs of one bundle, as the page shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.benchmarks import pairs
from edgellm.benchmarks.result import Run, read, write
from edgellm.errors import UsageError
from tests.peers import ROOT
from tests.runs import a_run

KEPT = ROOT / "docs" / "benchmarks.pairs"


def stored(folder: Path, *runs: tuple[Run, Run]) -> Path:
    for number, pair in enumerate(runs, 1):
        for side, run in zip("ab", pair, strict=True):
            write(run, folder / f"{number}{side}.json")
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]


def test_every_row_is_counted_under_what_compare_says_of_it(tmp_path: Path) -> None:
    alike, worse = (a_run(seed=0), a_run(seed=1)), (a_run(seed=2), a_run(seed=3, slow={"decode": 2.0}))
    better, noisy = (worse[1], worse[0]), (a_run(seed=4, noise=0.4), a_run(seed=5, noise=0.4))
    found = rows(pairs.markdown(stored(tmp_path, alike, worse, better, noisy)))
    assert found[0] == ["1", "34", "34", "0", "0", "0", "nothing"]
    assert found[1] == ["2", "34", "28", "0", "0", "6", "nothing"]
    assert found[2] == ["3", "34", "28", "0", "6", "0", "nothing"]
    assert int(found[3][3]) > 17
    assert all(sum(map(int, row[2:6])) == int(row[1]) for row in found)


def test_what_speaks_against_an_answer_stands_beside_it(tmp_path: Path) -> None:
    found = rows(pairs.markdown(stored(tmp_path, (a_run(seed=0), a_run(seed=1, machine_slow=1.3)))))
    assert found[0][-1].startswith("the machine itself differs")


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pairs of runs; make them with"):
        pairs.markdown(tmp_path)


def test_runs_are_not_written_over(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pairs", str(tiny_bundle), str(tmp_path)])
    assert pairs.main() == 1


@pytest.mark.alone
@pytest.mark.slow
def test_the_command_keeps_every_run_or_none(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine is not quiet meanwhile it says so, and there is nothing to choose from."""
    folder = tmp_path / "new" / "runs"
    settings = pairs.Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1)
    monkeypatch.setattr(pairs, "SETTINGS", settings)
    monkeypatch.setattr(sys, "argv", ["pairs", str(tiny_bundle), str(folder), "--pairs", "2"])
    if pairs.main() == 0:
        assert sorted(file.name for file in folder.iterdir()) == ["1a.json", "1b.json", "2a.json", "2b.json"]
        assert len(rows(pairs.markdown(folder))) == 2
    else:
        assert not folder.parent.exists()


@pytest.mark.slow
def test_on_a_busy_machine_nothing_is_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pairs", str(tiny_bundle), str(tmp_path / "new"), "--pairs", "1"])
    monkeypatch.setattr(pairs, "SETTINGS", pairs.Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert pairs.main() == 1
    finally:
        busy.kill()
        busy.wait()
    assert "nothing is kept; begin again on a quiet machine" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_five_real_pairs_of_one_bundle_show_no_difference() -> None:
    """Those that docs/benchmarks.md shows, all that were measured by its command, none chosen."""
    files = sorted(KEPT.glob("*.json"))
    assert [file.stem for file in files] == [f"{number}{side}" for number in range(1, 6) for side in "ab"]
    runs = [read(file) for file in files]
    assert len({run.lanes[0].digest for run in runs}) == 1
    assert [run.started for run in runs] == sorted(run.started for run in runs)
    found = rows(pairs.markdown(KEPT))
    assert {tuple(row[4:]) for row in found} == {("0", "0", "nothing")}
    assert sum(int(row[3]) for row in found) < 0.05 * sum(int(row[1]) for row in found), "and nearly all would have been seen"
