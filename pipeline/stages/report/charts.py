"""The charts of the page, each a function of numbers; small, so that their text can be read on a phone."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.stages.report.numbers import BINS, Calibration
from pipeline.stages.report.theme import Colors

WIDTH, HEIGHT = 5, 3.1  # inches
POINTS = 150  # of a curve; of more, neighbours are drawn as their mean
NAMED, WRITTEN, CELLS = 25, 16, 100  # classes that a matrix names, letters of a name, cells a side
MATRIX = {"right": (29, 78, 216), "wrong": (190, 60, 20)}  # a cell's red, green and blue, which the page shows through

Lines = Sequence[Mapping[str, Any]]


def points(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of what is called `name`, `POINTS` at most."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    together = -(-len(found) // POINTS) or 1
    parts = [found[at : at + together] for at in range(0, len(found), together)]
    return [statistics.fmean(step for step, _ in part) for part in parts], [statistics.fmean(value for _, value in part) for part in parts]


def curve(what: str, lines: Lines, colors: Colors, *, kept: int | None = None) -> Figure:
    """`what` of training and validation against the step; where the weights were kept, a line."""
    figure, axis = _figure(what)
    _both(axis, what, lines, colors)
    if kept is not None:
        axis.axvline(kept, color=colors["mark"], linewidth=1.6, linestyle=":", label="weights kept")
    axis.set_xlim(left=0)
    axis.legend(frameon=False, fontsize=10)
    return figure


def curves(lines: Lines, colors: Colors) -> Figure:
    """Loss, accuracy and rate beside each other."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axis, what in zip(figure.subplots(1, 3), ("loss", "accuracy", "lr"), strict=True):
        axis.set(title={"lr": "learning rate"}.get(what, what), xlabel="step")
        _both(axis, what, lines, colors)
    return figure


def over_time(what: str, lines: Lines, name: str, colors: Colors, *, restarts: Sequence[int] = ()) -> Figure:
    """One thing against the step, with the steps at which the training was gone on with."""
    figure, axis = _figure(what)
    steps, values = points(lines, name)
    axis.plot(steps, values, color=colors["held"], linewidth=1.5, marker="o" if len(steps) < 3 else "", markersize=3.5)
    for k, step in enumerate(restarts):
        axis.axvline(step, color=colors["mark"], linewidth=1.2, linestyle="--", label="" if k else "restart")
    axis.set_xlim(left=0)
    if values and min(values) >= 0:
        axis.set_ylim(bottom=0)
    if restarts:
        axis.legend(frameon=False, fontsize=10)
    return figure


def matrix(counts: NDArray[np.int64], classes: Sequence[str], colors: Colors) -> Figure:
    """Rows are the true classes, columns the predicted ones; a cell is as dense as the square root of its share of the row."""
    together = -(-len(classes) // CELLS)  # of very many classes, neighbours share a cell
    edges = np.arange(0, len(classes), together)
    counts = np.add.reduceat(np.add.reduceat(counts, edges, 0), edges, 1)
    shares = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    cells = np.zeros((*counts.shape, 4), np.uint8)
    cells[..., :3] = MATRIX["wrong"]
    cells[np.arange(len(counts)), np.arange(len(counts)), :3] = MATRIX["right"]
    cells[..., 3] = np.rint(255 * shares)
    named = len(classes) <= NAMED
    side = min(9.0, 3.0 + 0.4 * len(classes)) if named else 6.0
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.grid(visible=False)
    end = len(counts) * together - 0.5
    axis.imshow(cells, interpolation="none", extent=(-0.5, end, end, -0.5))
    axis.set(xlabel="predicted" if named else "predicted (number of the class)", ylabel="true" if named else "true (number of the class)")
    if named:
        names, ticks = [shortened(name, WRITTEN) for name in classes], range(len(classes))
        axis.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(ticks, names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = "white" if shares[row, column] > 0.75 else colors["ink"]
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=9)
    return figure


def reliability(found: Calibration, colors: Colors) -> Figure:
    """Of the images of each bin of confidence: how many were right, beside how many should have been; and how many there are."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    left = np.arange(BINS) / BINS
    there = found.images > 0
    axis.plot([0, 1], [0, 1], color=colors["ink"], linewidth=1, linestyle="--", zorder=3, label="as sure as right")
    axis.bar(left[there], found.accuracy[there], 1 / BINS, align="edge", color=colors["held"], linewidth=0, label="accuracy of the bin")
    dots = {"marker": "o", "linestyle": "", "color": colors["train"], "markersize": 4, "zorder": 4, "clip_on": False}
    axis.plot(found.confidence[there], found.accuracy[there], **dots, label="its mean confidence")
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    figure.legend(frameon=False, fontsize=10, loc="outside upper left", ncols=2)
    below.bar(left, found.images / found.images.sum(), 1 / BINS, align="edge", color=colors["held"], linewidth=0)
    below.set(xlabel="confidence", ylabel="images", ylim=(0, 1), yticks=[0, 1], yticklabels=["", "all"])
    return figure


def shortened(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, loc="left")
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axis


def _both(axis: Axes, what: str, lines: Lines, colors: Colors) -> None:
    for split, color, width in (("train", "train", 1.3), ("validation", "held", 1.8)):
        steps, values = points(lines, f"{split}/{what}")
        if steps:
            marker = "o" if (len(steps) < 40 and split == "validation") or len(steps) < 3 else ""
            axis.plot(steps, values, label=split, color=colors[color], linewidth=width, marker=marker, markersize=3.5)
    if what == "loss":
        _tame(axis)


def _tame(axis: Axes) -> None:
    """Let a loss that begins far above the rest not flatten it."""
    curves = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    values = np.concatenate([*curves, np.zeros(0)])
    if not len(values):
        return
    if values.min() > 0 and values.max() > 30 * np.median(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    elif values.min() >= 0:
        axis.set_ylim(bottom=0)
