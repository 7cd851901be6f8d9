"""Runs a stage once for each distinct (version, configuration, inputs) and keeps what it made.

    artifacts/<stage>/<fingerprint>/                what the stage wrote, and
    artifacts/<stage>/<fingerprint>/manifest.json   written last: its presence means done

A stage that was interrupted has a directory and no manifest. Running the same command again
hands it the same directory, so it carries on where it stopped.
"""

import contextlib
import dataclasses
import functools
import importlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import __version__
from pipeline.config import Config
from pipeline.errors import DataError, Interrupted, PipelineError
from pipeline.runtime import files, fingerprint
from pipeline.runtime.console import say
from pipeline.runtime.launch import Launch, StopFlag, hostname

if TYPE_CHECKING:
    from pipeline.runtime.trackers import Trackers
    from pipeline.runtime.world import World


class Artifact(BaseModel):
    """What a stage makes: facts, and files in `dir`. `digest` names the content, not the making."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: Path
    digest: str = ""

    def files(self) -> list[str]:
        """The files that make up this artifact, relative to `dir`."""
        raise NotImplementedError

    def reasons(self) -> dict[str, Any]:
        return {type(self).__name__: self.digest}


A = TypeVar("A", bound=Artifact)


class Input(Protocol):
    """What a stage is given: a section of the configuration, an artifact, a source of raw data."""

    def reasons(self) -> dict[str, Any]: ...


class Manifest(BaseModel):
    """The record of one finished stage."""

    model_config = ConfigDict(frozen=True)

    stage: str
    reasons: dict[str, Any]  # all that the fingerprint is made of, by name
    outputs: files.Outputs
    result: dict[str, Any]  # the artifact's facts
    code: dict[str, str]  # module -> digest; recorded so that drift can be told
    environment: dict[str, Any]  # recorded only
    seconds: float

    @property
    def digest(self) -> str:
        """Equal content keeps everything after it fresh, however it came about."""
        return fingerprint.of_value([self.outputs, self.result])


@dataclass(frozen=True)
class Stage(Generic[A]):
    """The function `name` of the module `pipeline.stages.<name>`: from inputs and a workspace to an artifact.

    It is imported only when it is to run. Raise `version` when the meaning of its output changes.
    `on` says where it runs: "first" on the main process before the others are met, "main" while
    they wait, "all" on every process.
    """

    name: str
    makes: type[A]
    version: int
    on: Literal["first", "main", "all"]

    @property
    def module(self) -> str:
        return f"{fingerprint.PACKAGE}.stages.{self.name}"

    def function(self) -> Callable[..., A]:
        function: Callable[..., A] = getattr(importlib.import_module(self.module), self.name)
        return function


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

    def leave_if_asked(self) -> None:
        """For stages that have nothing to keep until they are done.

        Raises:
            Interrupted: this process was told to stop.
        """
        if self.stop.signal is not None:
            raise Interrupted("stopped before the stage was done; run the same command again", self.stop.signal.value)


@dataclass(frozen=True)
class Look:
    """Whether a stage need run, and why."""

    place: Path
    reasons: dict[str, Any]
    manifest: Manifest | None
    why: str


@dataclass
class Runner:
    """Calls stages. Every process must make the same calls in the same order."""

    config: Config
    launch: Launch
    stop: StopFlag
    trackers: "Trackers"
    make_world: "Callable[[], World]"
    force: str = ""
    on_stage: Callable[[str, Path], None] = lambda name, place: None
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
        assert found is not None and found.manifest is not None
        self.manifests[stage.name] = found.manifest
        self.on_stage(stage.name, found.place)
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
            raise DataError(f"{shared.place} is not on {hostname()}: all nodes must see the same run.artifacts folder")
        return shared

    def _make(
        self, stage: Stage[A], inputs: tuple[Input, ...], found: Look | None, share: Callable[[Any], Look | None]
    ) -> Look | None:
        if not self.launch.is_main and stage.on == "first":
            return None
        with self._locked(found.place) if self.launch.is_main and found else contextlib.nullcontext():
            found = self._look(stage, *inputs)  # another run may have made it while this one waited
            if self.launch.is_main and found and found.manifest is None:
                self._told(stage, found)
                self._clear(found.place, all_of_it=self.force == stage.name)
            found = share(found)
            if found is None or found.manifest is not None:
                return found
            if stage.on == "all" or self.launch.is_main:
                try:
                    found = self._run(stage, inputs, found)
                except PipelineError as error:
                    if stage.on == "main":
                        share(error)
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
                if self.stop.signal is not None:
                    raise Interrupted("stopped while waiting for another run", self.stop.signal.value) from None
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


def look(config: Config, stage: Stage[A], *inputs: Input) -> Look:
    """Whether `stage` of `inputs` has been made and is whole; if not, what has changed."""
    reasons: dict[str, Any] = {"version": stage.version}
    for value in inputs:
        reasons |= value.reasons()
    folder = config.run.artifacts.absolute() / stage.name
    place = folder / fingerprint.of_value([stage.name, reasons])[:12]
    manifest = read(place)
    if manifest is None:
        last = config.run.folder / config.run.name / stage.name
        return Look(place, reasons, None, _why(place, read(last) or _newest(folder), reasons))
    if broken := files.damage(place, manifest.outputs):
        return Look(place, reasons, None, f"damaged: {broken}; made again")
    drift = [m for m, d in fingerprint.of_modules(stage.module).items() if manifest.code.get(m) != d]
    note = f" (code changed since: {', '.join(drift)}; --force {stage.name} makes it again)" if drift else ""
    return Look(place, reasons, manifest, f"fresh{note}")


def read(place: Path) -> Manifest | None:
    """The manifest in `place`, or None if the stage never finished there."""
    try:
        return Manifest.model_validate(files.read_json(place / files.MANIFEST))
    except ValidationError:
        return None


def artifact(stage: Stage[A], place: Path, manifest: Manifest) -> A:
    return stage.makes.model_validate({**manifest.result, "dir": place, "digest": manifest.digest})


def commit(stage: Stage[A], found: Look, result: A, seconds: float, parallelism: Mapping[str, Any]) -> Look:
    """Hash and sync what the stage wrote, and say so in its manifest."""
    manifest = Manifest(
        stage=stage.name,
        reasons=found.reasons,
        outputs=files.seal(found.place, result.files()),
        result=result.model_dump(mode="json", exclude={"dir", "digest"}),
        code=fingerprint.of_modules(stage.module),
        environment={"pipeline": __version__, "python": platform.python_version(), **_versions(), **parallelism},
        seconds=round(seconds, 3),
    )
    files.write_json(found.place / files.MANIFEST, manifest.model_dump(mode="json"))
    return dataclasses.replace(found, manifest=manifest)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "accelerate", "numpy")} | {"host": hostname()}


def _why(place: Path, before: Manifest | None, reasons: Mapping[str, Any]) -> str:
    if place.is_dir():
        return "goes on where it stopped"
    if before is None:
        return "first time"
    changed = [k for k in {**before.reasons, **reasons} if before.reasons.get(k) != reasons.get(k)]
    return f"changed: {', '.join(changed)}" if changed else "its files are gone"


def _newest(folder: Path) -> Manifest | None:
    found = sorted(folder.glob(f"*/{files.MANIFEST}"), key=lambda p: p.stat().st_mtime)
    return read(found[-1].parent) if found else None

