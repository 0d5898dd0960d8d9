"""Plots drawn by matplotlib, as SVG that stands inside a page: its colours are the page's, light or dark, its text is text.

The same chart gives the same bytes. Every lane has a colour, a symbol and a stroke; bars of several parts have hatches, and
names stand beside what they name, so that nothing is told by colour alone.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

from edgellm.benchmarks.report import place, svg, texts
from edgellm.benchmarks.report.charts import Bars, Chart, Drawing, Hills, Line, Lines, Marks
from edgellm.benchmarks.report.document import short
from edgellm.errors import RuntimeUnavailable

WIDTH = 5.0  # inches: 360 units, about what a phone is wide
SIZE, SMALL = 10.0, 9.5
LABEL, ROW_LABEL = 30, 30  # characters of a name that is written into a plot
GAP = 0.19  # inches between names at the ends of lines
SYMBOLS = "os^DvPX*"
STROKES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (1.2, 1.2)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++", "oo")
SIGNS = "osD^vPX*"
STYLE = {
    "svg.hashsalt": "edgellm",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollars is no formula
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "text.color": svg.INK,
    "axes.labelcolor": svg.MUTED,
    "axes.edgecolor": svg.MUTED,
    "axes.labelsize": SMALL,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": svg.MUTED,
    "ytick.color": svg.MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "grid.color": svg.GRID,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.7,
    "hatch.color": svg.SURFACE,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
}
# What a font of matplotlib's own cannot show, a reader's device can: the text is in the picture.
NO_GLYPH = "(?s).*(Glyph|currently does not support|missing from)"


def check() -> None:
    """Raises RuntimeUnavailable where matplotlib cannot be imported."""
    plotting()


def draw(chart: Chart, name: str) -> str:
    """A plot as an `<svg>` element; `name` begins its ids, so that several stand in one page.

    Raises:
        RuntimeUnavailable: matplotlib is missing.
    """
    matplotlib, figures = plotting(), plotting("matplotlib.figure")
    heights = [_height(panel, len(chart.panels)) for panel in chart.panels]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NO_GLYPH, category=UserWarning)
        figure = figures.Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.05)
        rows = figure.subplots(len(heights), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, panel in zip(rows, chart.panels, strict=True):
            _panel(axes, panel)
        for axes in rows[:-1]:
            axes.set_xlabel("")
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return svg.embed(drawn.getvalue(), name, chart.title, chart.about)


def symbol(look: int) -> str:
    """The symbol of a lane, as its plots have it."""
    return SYMBOLS[(look + look // len(SYMBOLS)) % len(SYMBOLS)]


def color(look: int) -> int:
    """Which of the page's colours a lane has."""
    return look % svg.COLORS


def _height(panel: Drawing, panels: int) -> float:
    if isinstance(panel, Lines):
        return max(3.0 if panels == 1 else 1.75, 0.9 + (1 if panel.joined else 2) * GAP * len(panel.lines))
    if isinstance(panel, Hills):
        return 0.95 + 0.5 * len(panel.rows)
    if isinstance(panel, Marks):
        return 0.75 + (0.32 if len(panel.signs) < 2 else 0.44) * len(panel.rows) + _legend_height(panel.signs)
    parts = dict.fromkeys(name for bar in panel.bars for name, _ in bar.parts)
    return 0.75 + 0.36 * len(panel.bars) + (_legend_height(tuple(parts)) if _stacked(panel) else 0.0)


def _legend_height(names: Sequence[str]) -> float:
    return 0.22 * -(-len(names) // _columns(names))


def _columns(names: Sequence[str]) -> int:
    """Of a legend: as many as there is room for."""
    longest = max(map(len, names), default=0)
    return 3 if longest <= 17 else 2 if longest <= 25 else 1


def _panel(axes: Any, panel: Drawing) -> None:
    if isinstance(panel, Lines):
        _lines(axes, panel)
    elif isinstance(panel, Bars):
        _bars(axes, panel)
    elif isinstance(panel, Marks):
        _marks(axes, panel)
    else:
        _hills(axes, panel)
    axes.set_xlabel(panel.x, loc="right")


# Lines


def _lines(axes: Any, panel: Lines) -> None:
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(panel.y, loc="left", fontsize=SMALL, color=svg.MUTED)
    for line in panel.lines:
        _line(axes, panel, line)
    everything = [point for line in panel.lines for point in line.points]
    top = max((point.high or point.y for point in everything), default=1.0)
    if panel.zero:
        axes.set_ylim(0, (top or 1.0) * 1.08)
    else:
        axes.margins(y=0.2)
        axes.yaxis.set_major_locator(plotting("matplotlib.ticker").MaxNLocator(4, min_n_ticks=2))
    axes.yaxis.set_major_formatter("{x:,.6g}")
    _x_axis(axes, panel, sorted({point.x for point in everything}))
    if panel.shaded is not None:
        upto, name = panel.shaded
        axes.axvspan(axes.get_xlim()[0], upto, color=svg.GRID, alpha=0.55, lw=0, zorder=0)
        axes.text(0.01, 0.02, f" {name}", transform=axes.transAxes, fontsize=SMALL, color=svg.MUTED, va="bottom")
    if panel.joined:
        _names_at_ends(axes, panel)
    else:
        _names_beside(axes, panel)


def _line(axes: Any, panel: Lines, line: Line) -> None:
    xs, ys = [point.x for point in line.points], [point.y for point in line.points]
    paint = svg.color(color(line.look))
    stroke = STROKES[line.look % len(STROKES)] if panel.joined else ""
    mark = symbol(line.look) if panel.symbols else ""
    axes.plot(xs, ys, color=paint, ls=stroke, lw=1.8, marker=mark, ms=6.5, mec=svg.SURFACE, mew=0.8, zorder=3)
    for point in line.points:
        if point.low is not None and point.high is not None and point.high > point.low:
            axes.plot([point.x, point.x], [point.low, point.high], color=paint, lw=1.1, marker="_", ms=5, zorder=2)


def _x_axis(axes: Any, panel: Lines, xs: Sequence[float]) -> None:
    ticker = plotting("matplotlib.ticker")
    if panel.names:
        axes.set_xticks(range(len(panel.names)), [short(name, 14).replace(" ", "\n") for name in panel.names])
        axes.set_xlim(-0.35, len(panel.names) - 0.65)
        return
    if panel.log and xs and xs[0] > 0:
        axes.set_xscale("log")
        axes.minorticks_off()
    if panel.symbols and panel.joined and len(xs) <= 8:  # those that were measured
        axes.set_xticks(_apart(xs, panel.log))
        axes.margins(x=0.07)
    elif panel.log:
        _log_ticks(axes, xs)
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=panel.symbols))
    axes.xaxis.set_major_formatter("{x:,.6g}")


def _log_ticks(axes: Any, xs: Sequence[float]) -> None:
    """1, 2, 5 where the range is short, else decades."""
    ticker = plotting("matplotlib.ticker")
    wide = bool(xs) and max(xs) > 100 * min(xs)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter("{x:,.6g}")
    if xs:
        axes.set_xlim(min(xs) / 1.6, max(xs) * 1.9)


def _apart(xs: Sequence[float], log: bool) -> list[float]:
    """Those whose numbers do not run into each other."""
    if log or len(xs) < 3:
        return list(xs)
    kept, least = [xs[-1]], 0.13 * (xs[-1] - xs[0])
    for x in reversed(xs[:-1]):
        if kept[-1] - x >= least:
            kept.append(x)
    return kept[::-1]


def _names_at_ends(axes: Any, panel: Lines) -> None:
    """Beside the last point of each line, with a stroke to it."""
    axes.figure.draw_without_rendering()  # the layout decides how high the axes are
    low, high = axes.get_ylim()
    lines = [line for line in panel.lines if line.label]
    ends = [(line.points[-1].y - low) / (high - low) for line in lines]
    height = axes.get_position().height * axes.figure.get_figheight()
    for line, y, there in zip(lines, ends, place.apart(ends, GAP / height), strict=True):
        how = {"transform": axes.transAxes, "color": svg.color(color(line.look)), "clip_on": False}
        axes.plot([1.0, 1.035], [y, there], lw=0.9, ls=STROKES[line.look % len(STROKES)], **how)
        if panel.symbols:
            axes.plot([1.05], [there], marker=symbol(line.look), ms=5, mec=svg.SURFACE, **how)
        axes.text(1.08, there, short(line.label, LABEL), transform=axes.transAxes, va="center", fontsize=SMALL)


def _names_beside(axes: Any, panel: Lines) -> None:
    """Beside each point."""
    axes.margins(x=0.2, y=0.12)
    axes.figure.draw_without_rendering()  # what is to be avoided has to have its place
    scale = axes.figure.dpi / 72
    points = [line.points[0] for line in panel.lines]
    names = [short(line.label, LABEL) for line in panel.lines]
    places = [tuple(axes.transData.transform((point.x, point.y)).tolist()) for point in points]
    sizes = [(0.6 * SMALL * scale * len(name), 1.2 * SMALL * scale) for name in names]
    spots = place.beside(places, sizes, axes.get_window_extent().extents.tolist(), scale)
    for point, name, (right, up, align) in zip(points, names, spots, strict=True):
        where = {"xytext": (right, up), "textcoords": "offset points", "ha": align, "va": "center"}
        axes.annotate(name, (point.x, point.y), fontsize=SMALL, **where)


# Rows


def _rows(axes: Any, labels: Sequence[str]) -> None:
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(labels)), [short(label, ROW_LABEL) for label in labels], color=svg.INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _bars(axes: Any, panel: Bars) -> None:
    _rows(axes, [bar.label for bar in panel.bars])
    stacked = _stacked(panel)
    names = list(dict.fromkeys(name for bar in panel.bars for name, _ in bar.parts))
    ends = [sum(value for _, value in bar.parts) for bar in panel.bars]
    widest = max([*ends, *(bar.high or 0.0 for bar in panel.bars), panel.limit[0] if panel.limit else 0.0]) or 1.0
    for y, (bar, end) in enumerate(zip(panel.bars, ends, strict=True)):
        start = 0.0
        for name, value in bar.parts:
            part = names.index(name) if stacked else 0
            look = part if stacked else color(bar.look)
            axes.barh(
                y, value, 0.62, left=start, color=svg.color(look % svg.COLORS), hatch=HATCHES[part % len(HATCHES)],
                edgecolor=svg.SURFACE, lw=0.6, label=name if stacked else None,
            )  # fmt: skip
            start += value
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            axes.plot([bar.low, bar.high], [y, y], color=svg.INK, lw=1.1, marker="|", ms=6)
        number = f"{100 * end:.0f} %" if panel.percent else f"{texts.number(end)} {panel.unit}".strip()
        reach = max(end, bar.high or 0.0)
        if panel.limit is not None and 0.8 * widest < reach < panel.limit[0]:  # it would stand on the line
            reach = panel.limit[0]
        axes.text(reach + 0.012 * widest, y, number, va="center", fontsize=SMALL)
    axes.set_xlim(0, widest * 1.24)
    axes.xaxis.set_major_locator(plotting("matplotlib.ticker").MaxNLocator(5))
    axes.xaxis.set_major_formatter((lambda x, _: f"{100 * x:.0f} %") if panel.percent else "{x:,.6g}")
    if panel.limit is not None:
        value, name = panel.limit
        axes.axvline(value, color=svg.INK, lw=1.2, ls=STROKES[1])
        axes.text(value, 1.01, name, transform=axes.get_xaxis_transform(), fontsize=SMALL, ha="right", va="bottom")
    if stacked:
        handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        _legend(axes, list(handles.values()), list(handles))


def _stacked(panel: Bars) -> bool:
    return any(len(bar.parts) > 1 for bar in panel.bars)


def _legend(axes: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    names = [short(name, 50) for name in names]
    columns = _columns(names)
    axes.figure.legend(
        handles, names, loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2, borderaxespad=0.2
    )


def _marks(axes: Any, panel: Marks) -> None:
    _rows(axes, [label for label, _, _ in panel.rows])
    xs = [x for _, _, marks in panel.rows for mark in marks for x in (mark.x, mark.low, mark.high) if x is not None]
    if panel.log and min(xs, default=0.0) > 0:
        axes.set_xscale("log")
        _log_ticks(axes, xs)
    else:
        axes.xaxis.set_major_locator(plotting("matplotlib.ticker").MaxNLocator(5))
        axes.margins(x=0.08)
        axes.xaxis.set_major_formatter("{x:,.6g}")
    if panel.middle is not None:
        axes.axvline(panel.middle, color=svg.INK, lw=1.1)
    for row, (_, look, marks) in enumerate(panel.rows):
        paint = svg.color(color(look))
        for mark in marks:
            y = row + 0.22 * (mark.sign - (len(panel.signs) - 1) / 2 if panel.signs else 0.0)
            if mark.low is not None and mark.high is not None:
                axes.plot([mark.low, mark.high], [y, y], color=paint, lw=1.6, marker="|", ms=7)
            sign = SIGNS[mark.sign % len(SIGNS)] if panel.signs else symbol(look)
            axes.plot([mark.x], [y], color=paint, marker=sign, ms=7.5, mec=svg.SURFACE, mew=0.8, ls="")
    if panel.signs:
        handles = [
            axes.plot([], [], color=svg.INK, marker=SIGNS[i % len(SIGNS)], ms=6, ls="")[0] for i in range(len(panel.signs))
        ]
        _legend(axes, handles, panel.signs)


def _hills(axes: Any, panel: Hills) -> None:
    _rows(axes, [label for label, _, _, _, _ in panel.rows])
    axes.set_ylim(len(panel.rows) - 0.7, -0.95)
    names: dict[str, Any] = {}
    for y, (_, look, edges, counts, lines) in enumerate(panel.rows):
        most = max(counts, default=0) or 1
        heights = [y - 0.85 * count / most for count in counts]
        axes.stairs(heights, edges, baseline=y, fill=True, color=svg.color(color(look)), alpha=0.55)
        axes.stairs(heights, edges, baseline=y, color=svg.color(color(look)), lw=1.2)
        for index, (name, value) in enumerate(lines):
            stroke = STROKES[(0, 1, 3)[index % 3]]
            names[name] = axes.plot([value, value], [y, y - 0.9], color=svg.INK, lw=1.4, ls=stroke)[0]
    axes.xaxis.set_major_locator(plotting("matplotlib.ticker").MaxNLocator(6))
    axes.xaxis.set_major_formatter("{x:,.6g}")
    _legend(axes, list(names.values()), list(names))


def plotting(name: str = "matplotlib") -> Any:
    """matplotlib, or a module of it, such as "matplotlib.ticker".

    Raises:
        RuntimeUnavailable: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = f"plots need matplotlib, which cannot be imported ({error})"
        raise RuntimeUnavailable(what, fix="pip install 'edgellm[report]', or write Markdown") from error
