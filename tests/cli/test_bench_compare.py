"""`edgellm bench compare`: what it prints, and its exit status, which is what a gate goes by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from edgellm.benchmarks.result import Run, write
from edgellm.cli import Commands
from edgellm.cli._bench_compare import OrCompare, command
from tests.runs import a_lane, a_run


@click.command(cls=OrCompare)
@click.argument("bundles", nargs=-1)
def bench(bundles: tuple[str, ...]) -> None:
    click.echo(f"measured {' '.join(bundles)}")


group = Commands("edgellm")
group.get_command = lambda ctx, cmd_name: bench  # type: ignore[method-assign, assignment]


def edgellm(*arguments: object) -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)), terminal_width=200, env={"COLUMNS": "160"})


def stored(folder: Path, name: str, run: Run) -> Path:
    write(run, folder / name)
    return folder / name


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return stored(tmp_path, "old.json", a_run(seed=0))


def new(folder: Path, **changes: Any) -> Path:
    return stored(folder, "new.json", a_run(seed=1, **changes))


def test_no_difference_is_0(old: Path, tmp_path: Path) -> None:
    done = edgellm("bench", "compare", old, new(tmp_path))
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith("no regression by more than 3 % in 34 rows")
    assert "all intervals together hold the truth 99% of the time" in done.stdout


def test_a_regression_is_1_and_is_shown(old: Path, tmp_path: Path) -> None:
    done = edgellm("bench", "compare", old, new(tmp_path, slow={"decode": 2.0}))
    assert done.exit_code == 1
    row = next(line for line in done.stdout.splitlines() if "decode after 0, speed" in line)
    assert re.search(r"10\d tok/s .* 5\d\.\d tok/s .* 0\.5\d .* 0\.4\d to 0\.5\d .* REGRESSION", row)
    assert "6 regressions by more than 3 % in 34 rows" in done.stdout
    assert edgellm("bench", "compare", old, new(tmp_path, slow={"decode": 2.0}), "--least", 99.9).exit_code == 0


def test_what_got_better_is_0(old: Path, tmp_path: Path) -> None:
    done = edgellm("bench", "compare", old, new(tmp_path, slow=0.5))
    assert done.exit_code == 0
    assert "better" in done.stdout
    asked = edgellm("bench", "compare", old, new(tmp_path, slow=0.5), "--least", 99.9)
    assert "better" not in asked.stdout, "to either side a difference is more than the least"


def test_what_speaks_against_an_answer_is_2_unless_asked_for(old: Path, tmp_path: Path) -> None:
    path = new(tmp_path, machine_slow=1.3, slow={"decode": 2.0})
    done = edgellm("bench", "compare", old, path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: \S+new\.json: no answer: the machine itself differs: bandwidth of 2 threads is 0\.\d+ times what it was "
        r"\(0\.\d+ to 0\.\d+\) \(and 1 more\); measure both again, or give --anyway\n",
        done.stderr,
    )
    asked = edgellm("bench", "compare", old, path, "--anyway")
    assert asked.exit_code == 1
    assert asked.stdout.startswith("against it: the machine itself differs: bandwidth of 2 threads")


def test_noise_that_hides_a_slow_down_is_2(tmp_path: Path) -> None:
    paths = [stored(tmp_path, f"{seed}.json", a_run(seed=seed, noise=0.4)) for seed in (0, 1)]
    done = edgellm("bench", "compare", *paths)
    assert done.exit_code == 2
    assert "cannot tell" in done.stdout
    assert re.search(
        r"no answer: in \d+ of 34 rows a slow-down of 30 % would not be seen; measure with more --trials", done.stderr
    )
    assert edgellm("bench", "compare", *paths, "--anyway").exit_code == 0


def test_json_holds_every_row(old: Path, tmp_path: Path) -> None:
    path = new(tmp_path, slow={"decode": 2.0})
    done = edgellm("bench", "compare", old, path, "--json", "-")
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    assert (len(value["rows"]), value["regressions"], value["alpha"], value["least"]) == (34, 6, 0.01, 0.03)
    row = next(row for row in value["rows"] if (row["case"], row["measure"]) == ("decode after 0", "speed"))
    assert (row["regression"], row["ratio"]["verdict"], row["unit"]) == (True, "slower", "tok/s")
    assert edgellm("bench", "compare", old, path, "--json", tmp_path / "out.json").exit_code == 1
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("arguments", [[], ["old.json"], ["a", "b", "c"], ["a", "b", "--least", "much"], ["a", "b"]])
def test_wrong_use_is_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert edgellm("bench", "compare", *arguments).exit_code == 2


def test_what_is_no_run_is_2(old: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    done = edgellm("bench", "compare", old, tmp_path / "other.json")
    assert done.exit_code == 2
    assert "other.json: no benchmark run; give a file that 'edgellm bench --json' wrote" in done.stderr


def test_what_a_file_names_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    lane = a_lane(id="[red]lane[/nothing]\x1b[2J")
    paths = [stored(tmp_path, f"{seed}.json", a_run([lane], seed=seed)) for seed in (0, 1)]
    done = edgellm("bench", "compare", *paths)
    assert done.exit_code == 0, done.output
    assert "[red]lane[/nothing]\\x1b[2J" in done.stdout


def test_a_target_that_cannot_be_written_is_refused_first(old: Path, tmp_path: Path) -> None:
    done = edgellm("bench", "compare", old, old, "--json", tmp_path / "none" / "out.json")
    assert (done.exit_code, done.stdout) == (1, "")


def test_only_a_first_word_compare_is_the_command() -> None:
    assert edgellm("bench", "bundle", "compare").stdout == "measured bundle compare\n"
    assert edgellm("bench", "./compare").stdout == "measured ./compare\n"
    assert edgellm("bench").stdout == "measured \n"
    shown = edgellm("bench", "compare", "--help").stdout
    assert shown.startswith("Usage: edgellm bench compare [OPTIONS] OLD NEW")
    alone = CliRunner().invoke(bench, ["compare", "--help"])
    assert (alone.exit_code, "OLD NEW" in alone.stdout) == (0, True)


def test_a_run_with_itself_does_not_differ(old: Path) -> None:
    done = CliRunner().invoke(command, [str(old), str(old)])
    assert done.exit_code == 0, done.output
