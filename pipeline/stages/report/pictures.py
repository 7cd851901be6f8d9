"""What trackers are shown of an evaluation, as files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime import journal
from pipeline.runtime.console import say
from pipeline.stages.artifacts import TrainedModel
from pipeline.stages.report import charts
from pipeline.stages.report.theme import Drawing, picture


def write(folder: Path, measured: Mapping[str, Any], trained: TrainedModel) -> dict[str, Path]:
    """PNG in `folder`, by name; one that cannot be drawn is said, and left out."""
    lines = journal.read(trained.dir / "metrics.jsonl")
    drawings: dict[str, Drawing] = {"curves": lambda colors: charts.curves(lines, colors)}
    if "confusion" in measured["test"]:
        drawings["confusion"] = lambda colors: charts.matrix(np.array(measured["test"]["confusion"]), trained.classes, colors)
    paths = {}
    for name, drawing in drawings.items():
        try:
            content = picture(drawing)
        except Exception as error:  # whatever the library raises
            say(f"evaluate: the picture {name} could not be drawn: {type(error).__name__}: {error}")
        else:
            paths[name] = folder / f"{name}.png"
            paths[name].write_bytes(content)
    return paths
