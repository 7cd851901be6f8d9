"""An export, runs/tiny/export, beside what has become of it elsewhere."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
from processes import launch

from pipeline.runtime import files


def exported(folder: Path) -> dict[str, bytes]:
    """All files that the manifest of the export lists."""
    place = folder / "runs/tiny/export"
    return {name: (place / name).read_bytes() for name in json.loads((place / files.MANIFEST).read_text())["outputs"]}


def predicted(folder: Path, export: str) -> str:
    """What an export says of twenty images of noise."""
    (folder / "images").mkdir(exist_ok=True)
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), np.uint8)):
        PIL.Image.fromarray(pixels).save(folder / f"images/{k}.png")
    ended = launch(folder, ["predict", export, "images", "--format", "jsonl", "--top", "3"])
    assert (ended.code, ended.output.count("\n")) == (0, 20), ended.output
    return ended.output
