"""What is told of a run as it goes, to all its trackers, by way of a process aside."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.runtime import files
from pipeline.runtime.aside import LOCK, LOG, Aside
from pipeline.runtime.console import say

STAGES = ("prepare", "train", "evaluate", "export")  # of whose artifacts trackers are told


class Trackers:
    """All trackers of the run as one, for the process that trains. Nothing here waits, but for `close`; nothing raises.

    They are opened when training begins, or a stage is done that they have not been told of here to the end, made in this life or before;
    and always for what was started as somebody else's run, a trial of a sweep. Whenever they are, they get what they lack.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.ours: Callable[[], bool] = lambda: True  # whether this life of the run is still the one to tell
        self._wanted = bool(config.run.trackers)
        self._training: Path | None = None  # the artifact that is told of, once it is known
        self._made: dict[str, Path] = {}
        self._facts: dict[str, Any] = {}
        self._aside: Aside | None = None

    def begin(self, training: Path) -> None:
        """Have the trackers opened, which takes them a while, for a training that is to be done in this folder."""
        self._training = training
        self._tell()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._tell("log", step, values)

    def record(self) -> None:
        """There are journals, with what has been kept of earlier lives."""
        self._tell("record")

    def facts(self, **values: Any) -> None:
        """How it is done, for the configuration that the trackers show."""
        self._facts |= values
        if self._aside is not None:
            self._tell("facts", values)

    def results(self, values: Mapping[str, float]) -> None:
        self._tell("results", values)

    def made(self, stage: str, place: Path) -> None:
        """A stage is done, or has been found so."""
        if stage not in STAGES:
            return
        self._made[stage] = place
        if stage == "train":
            self._training = place
        if self._aside is not None:
            for line in self._of(stage):
                self._tell(*line)
        elif self._training is not None and ("WANDB_RUN_ID" in os.environ or not self._was_told(self._training, place)):
            self._tell()

    def close(self, exit_code: int) -> None:
        """Wait until all has been told, `PATIENCE` seconds at most: what is left is sent with nobody waiting."""
        if self._aside is not None and self.ours():
            self._tell("close", exit_code, last=True)
            self._drop()

    def _was_told(self, training: Path, place: Path) -> bool:
        """All trackers, in this run folder: one that was disabled, or told in the folder of another run, has left nothing here."""
        found = files.read_json(training / LOCK)
        known: dict[str, list[str]] = found if isinstance(found, dict) else {}
        names = [spec.name for spec in self._config.run.trackers]
        return all(place.name in known.get(name, []) and (self._folder / name).exists() for name in names)

    def _of(self, stage: str) -> list[tuple[object, ...]]:
        return [*([("record",)] if stage == "train" else []), ("made", stage, str(self._made[stage]))]

    def _tell(self, *what: object, last: bool = False) -> None:
        if not (self._wanted and self.ours()):
            return
        try:
            if self._aside is None:
                assert self._training is not None
                self._aside = Aside(self._training, self._folder / LOG)
                first = (sys.argv, self._config.model_dump(mode="json"), str(self._folder))
                for line in (first, ("facts", self._facts), *(line for stage in self._made for line in self._of(stage))):
                    self._aside.tell(_line(*line))
            if what:
                self._aside.tell(_line(*what))
            if last:
                self._aside.finish()
        except OSError as error:
            say(f"trackers: {error}; going on without them")
            self._wanted = False
            self._drop()

    def _drop(self) -> None:
        if self._aside is not None:
            self._aside.end()
        self._aside = None


def _line(*what: object) -> bytes:
    return json.dumps(what).encode() + b"\n"
