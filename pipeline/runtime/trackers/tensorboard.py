"""TensorBoard: event files in the run folder, without TensorFlow or torch."""

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import reading
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.runtime.foreign import json_in


def tensorboard(config: Config, folder: Path, training: Path) -> "_TensorBoard":
    """For `tensorboard --logdir runs`."""
    try:
        importlib.import_module("tensorboard")
    except ImportError:
        raise PipelineError("it is not installed; `./setup tensorboard` installs it") from None
    return _TensorBoard(folder / "tensorboard")


class _TensorBoard:
    """One file of what is logged, and one of results and pictures: a life writes each anew, from the record, and so repeats nothing."""

    later = ""

    def __init__(self, folder: Path) -> None:
        self._folder, self._prepared, self._last = folder, Path(), 0
        self._log = self._anew("record")

    def _anew(self, what: str) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        for old in self._folder.glob(f"events.*.{what}"):
            old.unlink()
        return EventFileWriter(str(self._folder), flush_secs=1, filename_suffix=f".{what}")

    def has(self, step: int, name: str) -> bool:
        return False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._last = step
        _add(self._log, step, [{"tag": name, "simple_value": value} for name, value in values.items()])

    def facts(self, values: Mapping[str, Any]) -> None: ...

    def results(self, values: Mapping[str, float]) -> None: ...

    def made(self, stage: str, place: str) -> None:
        if stage == "prepare":
            self._prepared = Path(place)
        if stage != "evaluate":
            return
        measured: dict[str, Any] = json_in(Path(place) / "metrics.json", reading.MATRICES)
        splits = {split: values for split, values in measured.items() if split != "weights"}
        numbers = {f"{split}/{k}": v for split, values in splits.items() for k, v in values.items() if isinstance(v, int | float)}
        pictures = (*Path(place).glob("report/*.png"), self._prepared / "samples.png")
        images = [{"tag": path.stem, "image": {"encoded_image_string": path.read_bytes()}} for path in pictures if path.exists()]
        results = self._anew("results")
        _add(results, self._last, [*({"tag": f"result/{name}", "simple_value": value} for name, value in numbers.items()), *images])
        results.close()

    def close(self, exit_code: int) -> None:
        self._log.close()


def _add(writer: Any, step: int, values: list[dict[str, Any]]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(**value) for value in values])))
