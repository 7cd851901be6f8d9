"""What is told of a run as it goes, to all its trackers, by way of a process aside."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.runtime.aside import LASTING, Aside
from pipeline.runtime.console import say


class Trackers:
    """All trackers of the run as one, for the process that trains. Nothing here waits, but for `close`; nothing raises."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.training = folder  # the artifact of the training that is told of, once it is known
        self.ours: Callable[[], bool] = lambda: True  # whether this life of the run is still the one to tell
        self._wanted = bool(config.run.trackers)
        self._aside: Aside | None = None
        self._held: dict[Path, int] = {}  # folders, by descriptor

    def begin(self) -> None:
        """Have the trackers opened, which takes them a while, before there is anything to tell."""
        self._tell()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell("log", step, values)

    def results(self, values: Mapping[str, float]) -> None:
        self._tell("results", values)

    def picture(self, name: str, path: Path) -> None:
        self._tell("picture", name, path)

    def artifact(self, name: str, kind: str, paths: Sequence[Path], facts: Mapping[str, Any]) -> None:
        self._tell("artifact", name, kind, paths, facts)

    def close(self, exit_code: int) -> None:
        """Wait until all has been told, `PATIENCE` seconds at most."""
        if self._aside is not None and self.ours():
            self._tell("close", exit_code, last=True)
            self._drop()

    def _tell(self, *what: object, last: bool = False) -> None:
        if not (self._wanted and self.ours()):
            return
        try:
            if self._aside is None:
                self._aside = Aside(self.training)
                self._aside.tell(self._line(sys.argv, self._config.model_dump(mode="json"), str(self._folder)))
            if what:
                self._aside.tell(self._line(*what))
            if last:
                self._aside.finish()
        except OSError as error:
            say(f"trackers: {error}; going on without them")
            self._wanted = False
            self._drop()

    def _line(self, *what: object) -> bytes:
        return json.dumps(what, default=self._lasting).encode() + b"\n"

    def _lasting(self, path: Path) -> str:
        """A name of `path` that holds, by a descriptor of its folder: a stage's gets another when it is whole, before this is read."""
        if not LASTING:
            return str(path.absolute())
        if path.parent not in self._held:
            self._held[path.parent] = os.open(path.parent, os.O_RDONLY)
        return f"/proc/{os.getpid()}/fd/{self._held[path.parent]}/{path.name}"

    def _drop(self) -> None:
        if self._aside is not None:
            self._aside.end()
        self._aside = None
        while self._held:
            os.close(self._held.popitem()[1])
