"""Runs a stage once for each distinct (version, configuration, inputs) and keeps what it made.

A stage that was interrupted has a directory and no manifest. Running the same command again
hands it the same directory, so it carries on where it stopped.
"""

import contextlib
import dataclasses
import functools
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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


FORCED = "forced"


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

    @functools.cached_property
    def world(self) -> "World":
        return self.make_world()

    def __call__(self, stage: Stage[A], *inputs: Input) -> A:
        """The artifact of `stage(*inputs, workspace)`: found if fresh, made if not."""
        with contextlib.ExitStack() as lock:
            if stage.on == "all":
                found = self._share(self._told(lambda: self._begin(stage, inputs, lock)))
                if found.manifest is None:
                    result, seconds = self._run(stage, inputs, found)
                    found = self._share(self._told(lambda: self._commit(stage, found, result, seconds)))
            else:
                found = self._share(self._told(lambda: self._make(stage, inputs, lock)))
        assert found.manifest is not None
        self.manifests[stage.name] = found.manifest
        self.on_stage(stage.name, found.place, True)
        return artifact(stage, found.place, found.manifest)

    def _share(self, found: Look | PipelineError | None) -> Look:
        """What the main process found, on every process; or why it could not."""
        shared = found if self.launch.size == 1 else self.world.agree(found)
        if isinstance(shared, PipelineError):
            raise shared
        assert shared is not None
        if shared.manifest is not None and not shared.place.is_dir():
            raise DataError(f"{shared.place} is not on {socket.gethostname()}: all nodes must see the same run.artifacts folder")
        return shared

    def _told(self, work: Callable[[], Look]) -> Look | PipelineError | None:
        """What comes of the main process's `work`, while the others wait for it; an error is theirs to know as well."""
        if not self.launch.is_main:
            return None
        try:
            return work()
        except PipelineError as error:
            return error
        except Exception as error:
            if self.launch.size == 1:
                raise
            traceback.print_exc()
            return PipelineError(f"{type(error).__name__}: {error}")

    def _begin(self, stage: Stage[A], inputs: tuple[Input, ...], lock: contextlib.ExitStack) -> Look:
        """Find the stage fresh, or else hold its lock, with its place made ready."""
        found = self._look(stage, inputs)
        if found.manifest is None:
            lock.enter_context(self._locked(found.place))
            found = self._look(stage, inputs)  # another run may have made it while this one waited
        say(f"{stage.name}: {found.why}")
        if found.manifest is None:
            if found.why == FORCED:
                files.remove(found.place)
            found.place.mkdir(parents=True, exist_ok=True)
            (found.place / files.MANIFEST).unlink(missing_ok=True)
            self.on_stage(stage.name, found.place, False)
        return found

    def _look(self, stage: Stage[A], inputs: tuple[Input, ...]) -> Look:
        found = look(self.config, stage, *inputs)
        if self.force == stage.name and found.manifest is not None:  # what a forced one left unfinished is gone on with
            return dataclasses.replace(found, manifest=None, why=FORCED)
        return found

    def _make(self, stage: Stage[A], inputs: tuple[Input, ...], lock: contextlib.ExitStack) -> Look:
        found = self._begin(stage, inputs, lock)
        return found if found.manifest is not None else self._commit(stage, found, *self._run(stage, inputs, found))

    def _run(self, stage: Stage[A], inputs: tuple[Input, ...], found: Look) -> tuple[A, float]:
        began = time.monotonic()
        result = stage.function()(*inputs, Workspace(found.place, self.config, self.stop, lambda: self.world, self.trackers))
        return result, time.monotonic() - began

    def _commit(self, stage: Stage[A], found: Look, result: A, seconds: float) -> Look:
        world = self.__dict__.get("world")  # a stage that needed none has not opened it
        how = {} if world is None else {"world_size": world.size, "strategy": world.strategy, "device": world.device.type}
        return commit(stage, found, result, seconds, how)

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
