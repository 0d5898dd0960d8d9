"""Quality against speed as a picture, out of a run alone: the same run gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.benchmarks.frontier.points import Point, decode_at, frontier, points
from edgellm.benchmarks.frontier.table import decodes, split
from edgellm.benchmarks.peers import table
from edgellm.benchmarks.report.draw import plotting
from edgellm.benchmarks.report.texts import many
from edgellm.benchmarks.result import Run
from edgellm.errors import ResourceError, UsageError

METADATA: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".png": {"Software": None}}  # no dates, no versions
STYLE = {
    "svg.hashsalt": "edgellm",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MARKS = {"onnx": ("o", "tab:blue"), "tflite": ("s", "tab:orange")}  # ours, by runtime
THEIR_MARK, THEIR_COLOR = "^", "0.35"
PANEL = 4.5, 3.0  # inches
ROOM = 1.1  # above the fastest, for its name


def check(path: Path) -> None:
    """Raises UsageError for a kind of picture that is not drawn, RuntimeUnavailable where matplotlib is missing."""
    if path.suffix.lower() not in METADATA:
        raise UsageError("unknown kind of picture", where=path, fix=f"choose one of {', '.join(METADATA)}")
    plotting()


def draw(run: Run, path: Path) -> None:
    """A panel for each model, number of threads and depth: decode speed over KL, llama.cpp's frontier as a line.

    Raises:
        UsageError: an unknown kind of picture.
        RuntimeUnavailable: matplotlib is missing.
        ResourceError: the file cannot be written.
    """
    check(path)
    matplotlib, figures = plotting(), plotting("matplotlib.figure")
    groups, found = table.groups(run), table.index(run)
    cases = decodes(found)
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(PANEL[0] * len(cases), PANEL[1] * len(groups)), layout="constrained")
        panels = figure.subplots(len(groups), len(cases), squeeze=False)
        for row, (model, _, threads) in zip(panels, groups, strict=True):
            for axes, case in zip(row, cases, strict=True):
                _panel(axes, points(found, table.rows(run, model, threads), case))
                axes.set_title(f"{model}, {many(threads, 'thread')}, after {case.depth} tokens", fontsize=8)
        figure.supxlabel("KL to the source, nats (closer is left)")
        figure.supylabel("decode, tokens a second")
        try:
            figure.savefig(path, metadata=METADATA[path.suffix.lower()], dpi=110)
        except OSError as error:
            raise ResourceError(str(error), where=path, fix="choose another file") from error


def _panel(axes: Any, every: Sequence[Point]) -> None:
    ours, theirs = split(every)
    line = frontier(theirs)
    if line:
        kls = np.geomspace(line[0].kl, max(each.kl for each in every), 50)
        speeds = [decode_at(max(kl, line[0].kl), line) for kl in kls.tolist()]
        axes.plot(kls, [each and each.median for each in speeds], color=THEIR_COLOR, lw=0.8, ls="--")
    for imatrix, label in ((False, "llama.cpp"), (True, "llama.cpp, importance matrix")):
        some = [each for each in theirs if ("-imatrix" in each.lane.variant) == imatrix]
        face = THEIR_COLOR if imatrix else "none"
        _scatter(axes, some, label, marker=THEIR_MARK, facecolors=face, edgecolors=THEIR_COLOR)
    for runtime, (mark, color) in MARKS.items():
        some = [each for each in ours if each.lane.runtime == runtime]
        _scatter(axes, some, f"edgellm, {runtime}", marker=mark, color=color)
    for each in (*ours, *line):
        axes.annotate(each.lane.variant, (each.kl, each.speed), xytext=(3, 3), textcoords="offset points", fontsize=5.5)
    if every:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(plotting("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(0, ROOM * max(each.speed for each in every))
        axes.legend(fontsize=6, loc="lower right", frameon=False)


def _scatter(axes: Any, some: Sequence[Point], label: str, **style: Any) -> None:
    if some:
        axes.scatter([each.kl for each in some], [each.speed for each in some], s=16, lw=0.8, label=label, **style)
