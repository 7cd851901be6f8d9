"""`report/index.html` of an evaluation. A part of it that cannot be drawn is said, there and on the terminal, and harms no other."""

import base64
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pipeline.learning.statistics import wilson
from pipeline.runtime import files
from pipeline.runtime.console import say
from pipeline.stages.report import charts, images, numbers
from pipeline.stages.report.facts import Facts, settings, stages
from pipeline.stages.report.theme import Drawing, svg

HERE = Path(__file__).parent
NOTHING = "\N{EN DASH}"
MISTAKES, SAMPLES, PAIRS, ROWS = 24, 24, 12, 500  # pictures of each, rows of the two tables


@dataclass
class Parts:
    """What has been made for the template, by name, and what could not be."""

    made: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def make(self, name: str, part: Callable[[], Any]) -> None:
        try:
            self.made[name] = part()
        except Exception as error:  # whatever a library raises
            self.broken[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            say(f"report: {name} could not be drawn: {self.broken[name]}")

    def draw(self, name: str, drawing: Drawing, alt: str) -> None:
        self.make(name, lambda: svg(drawing, alt))


def write(facts: Facts) -> Path:
    """Make the page; where it is."""
    parts = Parts()
    parts.make("interval", lambda: wilson(int(facts.right.sum()), len(facts.right)))
    parts.make("fit", lambda: numbers.fit(facts.lines))
    parts.make("hardware", facts.hardware)
    parts.make("parameters", facts.parameters)
    parts.make("settings", lambda: settings(facts))
    parts.make("stages", lambda: stages(facts))
    _draw_curves(parts, facts)
    _draw_results(parts, facts)
    _show_images(parts, facts)
    page = _render(facts, parts)
    (facts.place / "report").mkdir(exist_ok=True)
    files.write_whole(facts.place / "report" / "index.html", page)
    return facts.place / "report" / "index.html"


def _draw_curves(parts: Parts, facts: Facts) -> None:
    kept = facts.trained.selected.get("step")
    for what in ("loss", "accuracy"):
        ends = {split: _last(facts.lines, f"{split}/{what}") for split in ("train", "validation")}
        told = ", ".join(f"{split} ends at {last:.4g}" for split, last in ends.items() if last is not None)
        parts.draw(what, partial(charts.curve, what, facts.lines, kept=kept), f"Chart of the {what} against the step: {told}.")
    restarts = facts.restarts
    also = f" The training was gone on with at step {', '.join(map(str, restarts))}." if restarts else ""
    for name, title, lines, key in (
        ("rate", "learning rate", facts.lines, "train/lr"),
        ("throughput", "images a second", facts.timings, "images/s"),
        ("gradient", "norm of the gradient", facts.lines, "train/gradient_norm"),
        ("wait", "share of the time spent waiting for data", facts.timings, "data_wait"),
    ):
        if (last := _last(lines, key)) is not None:
            alt = f"Chart of the {title} against the step, ending at {last:.4g}.{also}"
            parts.draw(name, partial(charts.over_time, title, lines, key, restarts=restarts), alt)


def _draw_results(parts: Parts, facts: Facts) -> None:
    labels, predicted, classes = facts.kept["test.labels"], facts.kept["test.predicted"], facts.data.classes
    parts.make("classes", lambda: _classes(facts))
    parts.make("confused", lambda: numbers.confused(labels, predicted, len(classes), PAIRS))
    if "confusion" in facts.test:
        alt = f"Confusion matrix of {len(classes)} classes: {facts.right.sum()} of {len(labels)} test images lie on its diagonal."
        parts.draw("confusion", partial(charts.matrix, np.array(facts.test["confusion"]), classes), alt)
    parts.make("calibration", lambda: numbers.Calibration.of(facts.kept["test.confidence"].astype(float), facts.right))
    if found := parts.made.get("calibration"):
        alt = f"Reliability diagram: accuracy against confidence in {numbers.BINS} bins; expected calibration error {found.error:.4f}."
        parts.draw("reliability", partial(charts.reliability, found), alt)


def _classes(facts: Facts) -> list[dict[str, Any]]:
    """A row a class; of very many those with the lowest F1."""
    found = numbers.PerClass.of(facts.kept["test.labels"], facts.kept["test.predicted"], len(facts.data.classes))
    order = np.argsort(np.nan_to_num(found.f1, nan=2.0), kind="stable")[:ROWS] if len(found.f1) > 2 * ROWS else np.arange(len(found.f1))
    return [
        {
            "name": facts.data.classes[k],
            "train": facts.data.histogram["train"][k],
            "support": int(found.support[k]),
            "precision": found.precision[k],
            "recall": found.recall[k],
            "f1": found.f1[k],
        }
        for k in order.tolist()
    ]


def _show_images(parts: Parts, facts: Facts) -> None:
    test, classes = facts.data.open("test"), facts.data.classes
    labels, predicted, confidence = (facts.kept[f"test.{name}"] for name in ("labels", "predicted", "confidence"))
    rows = images.most_confident_mistakes(labels, predicted, confidence, MISTAKES)
    parts.make("mistakes", lambda: images.shown(rows, test, facts.kept, classes))
    parts.make("shown", lambda: images.shown(images.spread_out(len(labels), SAMPLES), test, facts.kept, classes))
    parts.make("layers", lambda: images.layers(facts.trained, images.pixels(test, 0)))
    parts.make("samples", lambda: "data:image/png;base64," + base64.b64encode((facts.data.dir / "samples.png").read_bytes()).decode())


def _last(lines: list[dict[str, Any]], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def _render(facts: Facts, parts: Parts) -> str:
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"percent": _percent, "fixed": _fixed, "clock": _clock}
    style, script = ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
    return environment.get_template("page.html.j2").render(
        facts=facts,
        parts=parts.made,
        broken=parts.broken,
        title=f"{facts.trained.model.name} on {facts.source}",
        rule=numbers,
        points=charts.POINTS,
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _percent(value: float, digits: int = 2) -> str:
    return NOTHING if math.isnan(value) else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _fixed(value: float, digits: int = 4) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
