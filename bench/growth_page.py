"""What growth costs, of bench/results/growth.json, as tables and curves; anew without measuring: python -m bench.growth_page"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from bench.measure import RESULTS
from pipeline.stages.report.theme import STYLE

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("prepare, s", "check, s", "open, ms", "first step, ms", "step, ms", "prepare, MB", "memory, MB", "mapped, MB", "peak RSS, MB")
TIMES, MEMORY = ("prepare, s", "check, s", "first step, ms", "step, ms"), ("prepare, MB", "memory, MB", "mapped, MB")
NAMES = {"images": "images", "classes": "classes", "size": "pixels a side", "parameters": "parameters", "processes": "processes"}
SHORT = 30  # times the least that is the most of a short axis
BEGIN, END = "<!-- by python -m bench.growth -->", "<!-- to here -->"


def write(kept: Mapping[str, Any]) -> None:
    """Draw all axes, and put their tables into docs/performance.md, between its two marks."""
    page = DOCS / "performance.md"
    head, _, rest = page.read_text().partition(BEGIN)
    tables = "\n\n".join(table(each, kept["axes"][each]) for each in NAMES if each in kept["axes"])
    page.write_text(f"{head}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}")
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        curves(kept["axes"]).savefig(DOCS / "growth.svg", metadata={"Date": None, "Creator": None})


def table(name: str, axis: Mapping[str, Any]) -> str:
    """Markdown, with a last line that says how each figure grows: the power of the value by which it does, between the last two."""
    rows: Sequence[Mapping[str, Any]] = axis["rows"]
    machine = axis["machine"]
    on = f"{machine['cores']} cores of {machine['cpu']}, torch {machine['torch']}, load {machine['load']} before it"
    lines = [f"**{NAMES[name]}** (n = {axis['n']}, {axis['steps']} steps each; {on})", ""]
    lines += [f"| {' | '.join((NAMES[name], *COLUMNS))} |", "|" + " ---: |" * (1 + len(COLUMNS))]
    for row in rows:
        figures = [row["skipped"]] if "skipped" in row else [_short(row[column]) for column in COLUMNS]
        lines.append(f"| {row['value']:,} | {' | '.join(figures)} |")
    whole = [row for row in rows if "skipped" not in row]
    if len(whole) > 1:
        lines.append(f"| *power* | {' | '.join(_power(whole[-2], whole[-1], column) for column in COLUMNS)} |")
    return "\n".join(lines)


def curves(axes: Mapping[str, Any]) -> Figure:
    """A column an axis: seconds above, memory below, both logarithmic."""
    names = [name for name in NAMES if name in axes]
    figure = Figure(figsize=(3 * len(names), 5.2), layout="constrained")
    for column, name in enumerate(names):
        rows = [row for row in axes[name]["rows"] if "skipped" not in row]
        for line, (columns, title) in enumerate(((TIMES, "seconds"), (MEMORY, "MB"))):
            plot = figure.add_subplot(2, len(names), 1 + column + line * len(names))
            for what in columns:
                factor = 1e-3 if what.endswith("ms") else 1
                points = [(row["value"], row[what] * factor) for row in rows if row[what] > 0]
                plot.plot(*zip(*points, strict=True), marker=".", linewidth=1.2, label=what.partition(",")[0])
            plot.set(xscale="log", yscale="log", xlabel=NAMES[name])
            _label(plot, [row["value"] for row in rows], [row[what] for row in rows for what in columns if row[what] > 0])
            if column == 0:
                plot.set_ylabel(title)
                plot.legend(frameon=False, fontsize=7)
    return figure


def _label(plot: Axes, values: Sequence[int], figures: Sequence[float]) -> None:
    """Plain numbers on a short axis, where powers of ten are too few, and those between them too long: below, what was measured."""
    if max(values) < 1000:
        plot.set_xticks(values, [str(value) for value in values])
        plot.xaxis.set_minor_locator(NullLocator())
    if max(figures) < SHORT * min(figures):
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.yaxis.set_major_formatter("{x:g}")
        plot.yaxis.set_minor_formatter(NullFormatter())


def _power(before: Mapping[str, Any], last: Mapping[str, Any], column: str) -> str:
    if before[column] <= 0 or last[column] <= 0:
        return ""
    return f"{math.log(last[column] / before[column]) / math.log(last['value'] / before['value']):.2f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    write(json.loads((RESULTS / "growth.json").read_text()))
