"""What trackers are shown of an evaluation, as files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime import files, journal
from pipeline.runtime.console import say
from pipeline.stages.artifacts import TrainedModel
from pipeline.stages.report import charts
from pipeline.stages.report.theme import Drawing, picture


def write(folder: Path, measured: Mapping[str, Any], trained: TrainedModel) -> None:
    """PNG in `folder`; one that cannot be drawn is said, and left out."""
    lines = journal.read(trained.dir / "metrics.jsonl")
    drawings: dict[str, Drawing] = {"curves": lambda colors: charts.curves(lines, colors)}
    if "confusion" in measured["test"]:
        drawings["confusion"] = lambda colors: charts.matrix(np.array(measured["test"]["confusion"]), trained.classes, colors)
    for name, drawing in drawings.items():
        try:
            files.write_whole(folder / f"{name}.png", picture(drawing))
        except Exception as error:  # whatever the library raises, or the disk
            say(f"evaluate: the picture {name} could not be drawn: {type(error).__name__}: {error}")
