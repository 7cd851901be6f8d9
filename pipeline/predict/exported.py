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
from pipeline.runtime import files

NEEDED = ("model.onnx", "model.json")


Side = Annotated[int, Field(gt=0, le=8192)]  # of images: 67 million pixels, as of those that are read


class About(BaseModel):
    """What `model.json` says that is needed here. An image is prepared by `shape` alone, whatever the size of others was."""

    shape: tuple[Literal[1, 3], Side, Side]  # channels, height, width
    classes: list[str]
    source: str = ""  # of the data; empty in an export of before this was written down


@dataclass(frozen=True)
class Exported:
    folder: Path
    about: About

    @classmethod
    def of(cls, place: Path) -> "Exported":
        """The export in `place`, or of the run that is in `place`, or called by that name, every byte of it checked.

        Raises:
            ConfigError: there is none.
            DataError: it is damaged.
        """
        folder = next((f for f in (place / "export", place, Path("runs") / place / "export") if f.is_dir()), place)
        manifest, broken = files.read_manifest(folder)
        if manifest is None and (folder / "model.onnx").exists():
            broken = broken or f"{files.MANIFEST} is missing"
        if not broken and (manifest is None or manifest.get("stage") != "export"):
            raise ConfigError(f"no export in {place}; give the folder of a finished run or of its export, or the name of a run in runs/")
        outputs = manifest.get("outputs", {}) if manifest else {}
        broken = broken or next((f"{name} is missing" for name in NEEDED if name not in outputs), "") or files.damage(folder, outputs)
        if broken:
            raise damaged(folder, broken)
        try:
            return cls(folder, About.model_validate(files.read_json(folder / "model.json")))
        except ValidationError:
            raise damaged(folder, "model.json does not say the shape of images and the names of classes") from None

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, K] of `images`, uint8 [B, *shape].

        Raises:
            DataError: the model is none that takes such images, and gives as many finite numbers as there are classes.
        """
        try:
            found = np.asarray(self._session.run(["probabilities"], {"images": images})[0])
        except Exception as error:  # onnxruntime has a class of its own for each kind of mistake, and no common one
            raise damaged(self.folder, f"model.onnx: {' '.join(str(error).split())[:200]}") from None
        if found.shape != (len(images), len(self.about.classes)) or not np.isfinite(found).all():
            raise damaged(self.folder, f"model.onnx does not give a probability for each of {len(self.about.classes)} classes")
        return found.astype(np.float32)

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = len(os.sched_getaffinity(0))  # it would else pin threads to cores that may not be ours
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take cores from those that read images
        return onnxruntime.InferenceSession(self.folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def damaged(folder: Path, how: str) -> DataError:
    return DataError(f"the export in {folder} is damaged: {how}; `pipeline export`, as it was made, makes it again")
