"""An export as it is used: its model, asked through onnxruntime. Nothing of it is executed but the graph, nor is torch needed."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import ConfigError, DataError
from pipeline.runtime import checksums, files

MODEL, ABOUT = "model.onnx", "model.json"

Side = Annotated[int, Field(gt=0, le=8192)]  # of images: 67 million pixels, as of those that are read


class About(BaseModel):
    """What `model.json` says that is needed here. An image is prepared by `shape` alone, whatever the size of others was."""

    shape: tuple[Literal[1, 3], Side, Side]  # channels, height, width
    classes: list[str]
    mean: list[float] = []  # of each channel, of 1
    source: str = ""  # of the data; empty in an export of before this was written down

    @property
    def is_dark_on_light(self) -> bool:
        """Whether grey images are of dark things on light ground, to go by the mean of all pixels."""
        return bool(self.mean) and self.mean[0] > 0.5


@dataclass(frozen=True)
class Exported:
    model: Path
    about: About

    @classmethod
    def of(cls, place: Path) -> "Exported":
        """The export in `place`, or of the run that is in `place`, or called by that name; every byte that is used is checked.

        A file, as `place/model.int8.onnx`, stands for the export that it is in, and is the model that is asked.

        Raises:
            ConfigError: there is none.
            DataError: it is damaged.
        """
        named = place.suffix == ".onnx" and not place.is_dir()
        above, name = (place.parent, place.name) if named else (place, MODEL)
        signs = (name,) if named else (name, checksums.NAME)
        folders = (above, above / "export", Path("runs") / above / "export")
        folder = next((folder for folder in folders if any((folder / sign).exists() for sign in signs)), None)
        if folder is None:
            ways = "the folder of a finished run or of an export, an .onnx file in it, or the name of a run in runs/"
            raise ConfigError(f"no export in {place}; give {ways}")
        if broken := checksums.damage(folder, (name, ABOUT)):
            raise damaged(folder, broken)
        try:
            return cls(folder / name, About.model_validate(files.read_json(folder / ABOUT)))
        except ValidationError:
            raise damaged(folder, f"{ABOUT} does not say the shape of images and the names of classes") from None

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, K] of `images`, uint8 [B, *shape].

        Raises:
            DataError: the model is none that takes such images, and gives as many finite numbers as there are classes.
        """
        try:
            found = np.asarray(self._session.run(["probabilities"], {"images": images})[0])
        except Exception as error:  # onnxruntime has a class of its own for each kind of mistake, and no common one
            raise damaged(self.model.parent, f"{self.model.name}: {' '.join(str(error).split())[:200]}") from None
        if found.shape != (len(images), len(self.about.classes)) or not np.isfinite(found).all():
            raise damaged(self.model.parent, f"{self.model.name} does not give a probability for each of {len(self.about.classes)} classes")
        return found.astype(np.float32)

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = len(os.sched_getaffinity(0))  # it would else pin threads to cores that may not be ours
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take cores from those that read images
        return onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])


def damaged(folder: Path, how: str) -> DataError:
    made_here = (folder / files.MANIFEST).exists()
    cure = "`pipeline export`, as it was made, makes it again" if made_here else "get it again from where it was published"
    return DataError(f"the export in {folder} is damaged: {how}; {cure}")
