"""Runs a stage once for each distinct (version, configuration, inputs) and keeps what it made.

A stage works in a directory of its own, which gets its final name when it is whole. Running the same
command again after an interruption hands it the same directory, so it carries on where it stopped.
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
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import ConfigError, DataError, PipelineError, TakenOver, of_the_machine
from pipeline.runtime import claims, files
from pipeline.runtime.claims import Claim
from pipeline.runtime.console import say, working
from pipeline.runtime.launch import Launch, StopFlag
from pipeline.runtime.manifests import A, Input, Look, Manifest, Stage, artifact, begun_before, commit, look
from pipeline.runtime.origin import origin

if TYPE_CHECKING:
    from pipeline.runtime.mirror import Trackers
    from pipeline.runtime.world import World


FORCED = "forced"
POLL = 0.5  # seconds between asking whether another run has made it
KEPT = ("checkpoints", "metrics.jsonl", "timings.jsonl", "wandb.json", "trackers.json")  # of an interrupted stage, for the next life


@dataclass(frozen=True)
class Workspace:
    """What a stage may use besides its inputs: its directory, the processes, the trackers."""

    dir: Path
    config: Config  # for `config.run` alone: what else a stage depends on, it is given
    stop: StopFlag
    open_world: "Callable[[], World]"
    trackers: "Trackers"
    still_ours: Callable[[], None]  # to be asked by every process, before they go where only the main one would notice

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
    begin: Callable[[list[Claim]], None]  # called once, by the main process: claims the run folder and opens it
    force: str = ""
    on_stage: Callable[[str, Path, bool], None] = lambda name, place, done: None  # told when a stage begins and when it is done
    manifests: dict[str, Manifest] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)  # names of stages; the others were found fresh
    claims: list[Claim] = field(default_factory=list)  # what is ours: the run folder, and the stage that is being made

    @functools.cached_property
    def world(self) -> "World":
        return self.make_world()

    def __call__(self, stage: Stage[A], *inputs: Input) -> A:
        """The artifact of `stage(*inputs, workspace)`: found if fresh, made if not."""
        with self.watched(), contextlib.ExitStack() as held:
            if stage.on == "all":
                found = self._share(self._told(lambda: self._begin(stage, inputs, held)))
                if found.manifest is None:
                    result, seconds = self._run(stage, inputs, found)
                    found = self._share(self._told(lambda: self._commit(stage, found, result, seconds)))
            else:
                found = self._share(self._told(lambda: self._make(stage, inputs, held)))
            assert found.manifest is not None
            self.manifests[stage.name] = found.manifest
            self.on_stage(stage.name, found.place, True)
        return artifact(stage, found.place, found.manifest)

    def taken_over(self) -> str:
        """By whom, in a line; empty while all that was claimed is ours."""
        return next(filter(None, (claim.lost() for claim in self.claims)), "")

    def still_ours(self) -> None:
        """To be called by every process.

        Raises:
            TakenOver: another life of the run has gone on with it.
        """
        lost = self.taken_over()
        if self.launch.size > 1:
            lost = self.world.agree(lost)
        if lost:
            raise TakenOver(lost)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever goes wrong in a life that another has taken over from goes wrong because of that."""
        try:
            yield
        except Exception:
            if lost := self.taken_over():
                raise TakenOver(lost) from None
            raise

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
            with self.watched():
                if not self.claims:
                    self.begin(self.claims)
                if lost := self.taken_over():
                    raise TakenOver(lost)
                return work()
        except PipelineError as error:
            return error
        except OSError as error:
            return PipelineError(of_the_machine(error))
        except Exception as error:
            if self.launch.size == 1:
                raise
            traceback.print_exc()
            return PipelineError(f"{type(error).__name__}: {error}")

    def _begin(self, stage: Stage[A], inputs: tuple[Input, ...], held: contextlib.ExitStack) -> Look:
        """Find the stage fresh, or else claim it, with a folder to work in made ready."""
        found = self._look(stage, inputs)
        if found.manifest is not None:
            say(f"{stage.name}: {found.why}")
            return found
        claim = held.enter_context(self._claimed(found.place))
        found = self._look(stage, inputs)  # another run may have made it while this one waited
        say(f"{stage.name}: {found.why}")
        if found.manifest is not None:
            return found
        origin()
        work = claim.folder(adopt=None if self.force == stage.name else found.place)  # a damaged one has checkpoints yet
        for path in work.iterdir():  # an older life may have it open, and write to it when it wakes
            if path.name not in KEPT:
                files.remove(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.on_stage(stage.name, work, False)
        return dataclasses.replace(found, work=work)

    def _look(self, stage: Stage[A], inputs: tuple[Input, ...]) -> Look:
        found = look(self.config, stage, *inputs)
        if self.force == stage.name and found.manifest is not None:  # what a forced one left unfinished is gone on with
            begun = claims.newest(found.place, "partial") is not None
            return dataclasses.replace(found, manifest=None, why=begun_before(found.place) if begun else FORCED)
        return found

    def _make(self, stage: Stage[A], inputs: tuple[Input, ...], held: contextlib.ExitStack) -> Look:
        found = self._begin(stage, inputs, held)
        return found if found.manifest is not None else self._commit(stage, found, *self._run(stage, inputs, found))

    def _run(self, stage: Stage[A], inputs: tuple[Input, ...], found: Look) -> tuple[A, float]:
        began = time.monotonic()
        assert found.work is not None
        space = Workspace(found.work, self.config, self.stop, lambda: self.world, self.trackers, self.still_ours)
        with files.named(found.work), working(stage.name):
            result = stage.function()(*inputs, space)
        return result, time.monotonic() - began

    def _commit(self, stage: Stage[A], found: Look, result: A, seconds: float) -> Look:
        world = self.__dict__.get("world")  # a stage that needed none has not opened it
        how: dict[str, Any] = {}
        if world is not None:
            how = {"world_size": world.size, "strategy": world.strategy, "device": world.device.type, "terms": world.environment}
        whole = commit(stage, found, result, seconds, how, self.claims[-1])
        self.made.append(stage.name)
        say(f"{stage.name}: done in {seconds:.1f} s")
        return whole

    @contextlib.contextmanager
    def _claimed(self, place: Path) -> Iterator[Claim]:
        """Two runs that ask for the same thing: the second waits, then finds it made; or makes it, if the first is gone."""
        waiting = False
        while not isinstance(claim := claims.take(place, place, self.stop.lose), Claim):
            if not waiting:
                say(f"waiting for another run that is making {place}: pid {claim.pid} on host {claim.host}")
            waiting = True
            if self.stop:
                raise self.stop.interrupted("while waiting for another run")
            time.sleep(POLL)
        self.claims.append(claim)
        try:
            with self.watched():
                yield claim
        except (ConfigError, DataError):  # a mistake leaves nothing that the next life could go on with
            work, aside = Path(f"{place}.partial-{claim.number}"), claim.place / "mistaken"
            if not any((work / name).exists() for name in KEPT):
                with contextlib.suppress(OSError):  # another life has it by now
                    work.rename(aside)
                files.remove(aside)
            raise
        finally:
            self.claims.remove(claim)
            claim.leave()
