"""Classes and probabilities from an export alone: numpy, Pillow and onnxruntime; no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.images import pixels
from pipeline.errors import ConfigError, DataError
from pipeline.runtime import files


def predict(folder: Path, images: Sequence[Path]) -> Iterator[tuple[Path, str, float]]:
    """(image, class, probability) for each image, scaled as `prepare` would.

    Raises:
        ConfigError: `folder` is not an export, nor a run that has one.
        DataError: the export is damaged, or an image cannot be read.
    """
    folder = folder / "export" if (folder / "export").is_dir() else folder
    manifest, broken = files.read_manifest(folder)
    if manifest is None and (folder / "model.onnx").exists():
        broken = broken or f"{files.MANIFEST} is missing"
    if not broken and (manifest is None or manifest.get("stage") != "export"):
        raise ConfigError(f"no export in {folder}; give the folder of a finished run or of its export")
    if manifest is None or (broken := files.damage(folder, manifest["outputs"])):
        raise DataError(f"the export in {folder} is damaged: {broken}; `pipeline export`, as it was made, makes it again")
    about = files.read_json(folder / "model.json")
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    channels, *size = about["shape"]
    for path in images:
        batch = pixels(path, channels, tuple(size))[None]
        probabilities = np.asarray(session.run(["probabilities"], {"images": batch})[0])[0]
        best = int(probabilities.argmax())
        yield path, about["classes"][best], float(probabilities[best])
