"""Whether a machine is quiet."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm.benchmarks.peers import quiet
from edgellm.benchmarks.result import Moment


def test_busy_seconds_count_stolen_time_and_no_idling(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    counts = [1, 2, 3, 1000, 500, 4, 5, 6, 70, 80]  # user nice system idle iowait irq softirq steal guest guest_nice
    (tmp_path / "stat").write_text("cpu  " + " ".join(str(count * tick) for count in counts) + "\ncpu0 1 2\n", encoding="ascii")
    assert quiet.busy_seconds(tmp_path / "stat") == 1 + 2 + 3 + 4 + 5 + 6
    assert quiet.busy_seconds(tmp_path / "none") is None


def test_what_is_not_quiet() -> None:
    assert quiet.reasons(Moment(0.0, load=0.1, others=0.02)) == ()
    assert quiet.reasons(Moment(0.0)) == ()
    busy = Moment(0.0, load=0.9, others=0.9, busiest="make (12)")
    assert quiet.reasons(busy) == ("others keep 0.90 processors busy, most of it make (12)",)
    assert quiet.reasons(Moment(0.0, load=0.9)) == ("load average 0.90",), "where nothing else tells"
    assert quiet.reasons(Moment(0.0, load=0.9, others=0.02)) == (), "of a run of ours that has just ended"
