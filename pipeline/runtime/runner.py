"""Runs a stage once for each distinct (version, configuration, inputs) and keeps what it made.

A stage that was interrupted has a directory and no manifest. Running the same command again
hands it the same directory, so it carries on where it stopped.
"""

import contextlib
import dataclasses
import functools
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.config import Config
from pipeline.errors import DataError, PipelineError
from pipeline.runtime import files
from pipeline.runtime.console import say
from pipeline.runtime.launch import Launch, StopFlag
from pipeline.runtime.manifests import A, Input, Look, Manifest, Stage, artifact, commit, look

if TYPE_CHECKING:
    from pipeline.runtime.trackers import Trackers
    from pipeline.runtime.world import World


@dataclass(frozen=True)
class Workspace:
    """What a stage may use besides its inputs: its directory, the processes, the trackers."""

    dir: Path
    config: Config  # for `config.run` alone: what else a stage depends on, it is given
    stop: StopFlag
    open_world: "Callable[[], World]"
    trackers: "Trackers"

    @property
    def world(self) -> "World":
        return self.open_world()


@dataclass
class Runner:
    """Calls stages. Every process must make the same calls in the same order."""

    config: Config
    launch: Launch
    stop: StopFlag
    trackers: "Trackers"
    make_world: "Callable[[], World]"
    force: str = ""
    on_stage: Callable[[str, Path, bool], None] = lambda name, place, done: None  # told when a stage begins and when it is done
    manifests: dict[str, Manifest] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def world(self) -> "World":
        return self.make_world()

    def __call__(self, stage: Stage[A], *inputs: Input) -> A:
        """The artifact of `stage(*inputs, workspace)`: found if fresh, made if not."""
        share = self._share if stage.on != "first" else lambda found: found
        found = share(self._look(stage, *inputs))
        if found is None or found.manifest is None:
            found = self._make(stage, inputs, found, share)
        else:
            self._told(stage, found)
        found = found if stage.on != "first" else self._share(found)
        assert found is not None
        assert found.manifest is not None
        self.manifests[stage.name] = found.manifest
        self.on_stage(stage.name, found.place, True)
        return artifact(stage, found.place, found.manifest)

    def _look(self, stage: Stage[A], *inputs: Input) -> Look | None:
        if not self.launch.is_main:
            return None
        found = look(self.config, stage, *inputs)
        return dataclasses.replace(found, manifest=None, why="forced") if self.force == stage.name else found

    def _share(self, found: Look | PipelineError | None) -> Look:
        """What the main process found, on every process; or why it could not be made."""
        shared = found if self.launch.size == 1 else self.world.agree(found)
        if isinstance(shared, PipelineError):
            raise shared
        assert shared is not None
        if shared.manifest is not None and not shared.place.is_dir():
            raise DataError(f"{shared.place} is not on {socket.gethostname()}: all nodes must see the same run.artifacts folder")
        return shared

    def _make(self, stage: Stage[A], inputs: tuple[Input, ...], found: Look | None, share: Callable[[Any], Look | None]) -> Look | None:
        if not self.launch.is_main and stage.on == "first":
            return None
        with self._locked(found.place) if self.launch.is_main and found else contextlib.nullcontext():
            found = self._look(stage, *inputs)  # another run may have made it while this one waited
            if self.launch.is_main and found:
                self._told(stage, found)
                if found.manifest is None:
                    self._clear(found.place, all_of_it=self.force == stage.name)
                    self.on_stage(stage.name, found.place, False)
            found = share(found)
            if found is None or found.manifest is not None:
                return found
            if stage.on == "all" or self.launch.is_main:
                try:
                    found = self._run(stage, inputs, found)
                except PipelineError as error:
                    if stage.on != "all":
                        self._share(error)  # the others wait for the outcome, and end as this one does
                    raise
            return share(found)

    def _run(self, stage: Stage[A], inputs: tuple[Input, ...], found: Look) -> Look:
        began = time.monotonic()
        space = Workspace(found.place, self.config, self.stop, lambda: self.world, self.trackers)
        result = stage.function()(*inputs, space)
        seconds = time.monotonic() - began
        return commit(stage, found, result, seconds, self._parallelism()) if self.launch.is_main else found

    @contextlib.contextmanager
    def _locked(self, place: Path) -> Iterator[None]:
        """Two runs that ask for the same thing: the second waits, then finds it made."""
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{place}.lock")
        waiting = False
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                if not waiting:
                    say(f"waiting for another run that is making {place}")
                waiting = True
                if self.stop:
                    raise self.stop.interrupted("while waiting for another run") from None
        try:
            yield
        finally:
            lock.release()

    @staticmethod
    def _clear(place: Path, *, all_of_it: bool) -> None:
        if all_of_it:
            files.remove(place)
        place.mkdir(parents=True, exist_ok=True)
        (place / files.MANIFEST).unlink(missing_ok=True)

    def _told(self, stage: Stage[A], found: Look) -> None:
        self.why[stage.name] = found.why
        say(f"{stage.name}: {found.why}")

    def _parallelism(self) -> dict[str, Any]:
        world = self.__dict__.get("world")
        if world is None:
            return {}
        return {"world_size": world.size, "strategy": world.strategy, "device": str(world.device.type)}
