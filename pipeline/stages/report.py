"""The page that a person opens: curves, confusion matrix, numbers, in one file that needs no other."""

import io
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.config import Config, dump
from pipeline.runtime import files, journal
from pipeline.stages.artifacts import PreparedData, TrainedModel

mpl.use("agg")
STYLE: dict[str, Any] = {
    "svg.hashsalt": "pipeline",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}


def write(folder: Path, measured: dict[str, dict[str, Any]], data: PreparedData, trained: TrainedModel, config: Config) -> dict[str, Path]:
    """`index.html` in `folder`, and its pictures as PNG for the trackers; their names and paths."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figures = {"curves": curves(journal.read(trained.dir / "metrics.jsonl"))}
        if "confusion" in measured["test"]:
            figures["confusion"] = matrix(np.array(measured["test"]["confusion"]), data.classes)
        paths = {}
        for name, figure in figures.items():
            paths[name] = folder / f"{name}.png"
            figure.savefig(paths[name], dpi=120)
        drawn = {name: _svg(figure) for name, figure in figures.items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        name=f"{trained.model.name} on {config.data.source.name}",
        measured=measured,
        data=data,
        trained=trained,
        drawn=drawn,
        samples=_data_url(data.dir / "samples.png"),
        recipe=dump(config, only={"data", "train"}),
    )
    files.write_whole(folder / "index.html", page)
    return paths


def curves(lines: list[dict[str, Any]]) -> Figure:
    """Loss, accuracy and learning rate against the step."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, what in zip(axes, ("loss", "accuracy", "lr"), strict=True):
        for split in ("train", "validation"):
            points = [(line["step"], line[f"{split}/{what}"]) for line in lines if f"{split}/{what}" in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=split, linewidth=1.2, marker="." if len(points) < 3 else "")
        axis.set_xlabel("step")
        axis.set_title({"lr": "learning rate"}.get(what, what))
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    return figure


def matrix(counts: np.ndarray[Any, np.dtype[np.int64]], classes: list[str]) -> Figure:
    """Rows are the true classes, columns the predicted ones; shades are shares of the row."""
    side = min(9, 2.5 + 0.38 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true", title="test split")
    if len(classes) <= 25:
        ticks = range(len(classes))
        axis.set_xticks(ticks, classes, rotation=45 if max(map(len, classes)) > 2 else 0, parse_math=False)
        axis.set_yticks(ticks, classes, parse_math=False)
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=7)
    return figure


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _data_url(path: Path) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
