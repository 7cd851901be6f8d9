"""One process of a run, and what it does: the plan, carried out, and word of how it ended."""

import contextlib
import importlib
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import report
from pipeline.config import Config
from pipeline.credentials import hide
from pipeline.errors import ConfigError, DataError, GateError, Lost, PipelineError, of_the_machine, shown
from pipeline.plan import TARGETS, Plan
from pipeline.runtime import claims, console
from pipeline.runtime.claims import Claim
from pipeline.runtime.folder import RunFolder, is_of_job, vacate, write_status
from pipeline.runtime.launch import Launch, StopFlag
from pipeline.runtime.mirror import Trackers
from pipeline.runtime.runner import Runner, Workspace
from pipeline.runtime.watch import AFTERWARDS, Watch
from pipeline.summary import summarise

if TYPE_CHECKING:
    from pipeline.runtime.world import World

LOST = re.compile(  # in what torch raises when a process, or its machine, is gone
    r"connection (?:reset|refused|closed|was[\w ]+closed)[\w ]*|broken pipe|remote process exited|timed out[\w ]*|socket timeout",
    re.IGNORECASE,
)
TAKEN = re.compile(r"port: (\d+).*EADDRINUSE")
UNANSWERED = 60.0  # seconds
TRAINING = ("train", "lr_find")  # stages: what is found before one of them begins is a mistake of who typed, or in the data
MISTAKES = (ConfigError.exit_code, DataError.exit_code)
STATES = {0: "done", 75: "stopped", 130: "stopped", 143: "stopped"}


@dataclass
class Process:
    """What one process has for all the runs it makes: its place among the others, its signals, and the world once it is open."""

    launch: Launch
    stop: StopFlag
    threads: int
    terminal: int  # what a person sees, whatever becomes of this process's own output
    last: contextlib.ExitStack  # the other processes are left last: a launcher ends those that stay
    place: Path = field(default_factory=Path)  # the run folder
    made: list[str] = field(default_factory=list)  # the stages that this run did not find fresh
    world: "World | None" = None
    main: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))  # host and pid of the main process

    def open_world(self, config: Config) -> "World":
        if self.world is None:
            self.stop.waits = True
            if self.launch.size > 1:
                self._wait_for_main()
            self.world = self.join(config)
            self.stop.waits = False
            self.last.enter_context(self.world)
            if config.run.hang_timeout is not None:
                self._watch(self.world, config.run.hang_timeout.total_seconds())
        return self.world

    def _wait_for_main(self) -> None:
        """Raises PipelineError if its host is not there, or a next life has begun meanwhile: torch would wait for hours."""
        from pipeline.runtime import probe

        def look() -> None:
            if lost := claims.succeeded(self.place / ".run", self.place):
                raise Lost(lost)

        probe.wait_for_main(UNANSWERED, look, is_main=self.launch.is_main)

    def join(self, config: Config) -> "World":
        """The processes as `config` wants them; they meet but once."""
        from pipeline.runtime.world import World

        train, threads = config.train, config.run.threads or self.threads
        if elastic := train.determinism == "elastic":
            threads = config.run.threads or 1  # the bits depend on it, so it must not depend on who shares the cores
        shards = train.shards if elastic else None
        return World(config.run, self.launch, self.stop, precision=train.precision, threads=threads, shards=shards)

    def _watch(self, world: "World", seconds: float) -> None:
        token, self.main = world.agree((secrets.token_hex(8), self.main))
        who = {"rank": world.rank, "size": world.size}
        world.marks.begin = Watch(world.marks, self.place / ".watch", token, **who, timeout=seconds, end=self.last_words).start

    def last_words(self, code: int, message: str) -> None:
        """Say and note how the run ends, for a thread that is about to end this process without its main thread."""
        self.say(message)
        if claim := claims.held_by(self.place / ".run", *self.main):
            with contextlib.suppress(OSError):
                write_status(self.place, STATES.get(code, "failed"), aside=claim, exit_code=code, message=message)

    def say(self, message: str) -> None:
        console.leave_terminal()
        with contextlib.suppress(OSError):  # nobody is there any more; the exit code says it too
            os.write(self.terminal, f"pipeline: {message}\n".encode())

    def stopping(self) -> bool:
        """Whether a process was told to stop, the same answer on each."""
        return bool(self.stop) if self.world is None else self.world.any(bool(self.stop))


def make(config: Config, until: str, force: str, process: Process) -> dict[str, Any] | None:
    """Make or find everything up to the stage `until` (`model`: the data); a whole run's summary, on the main process."""
    launch, place = process.launch, config.run.folder / config.run.name
    process.place = place
    folder: RunFolder | None = None
    if not launch.is_main:
        console.write_to(place / "logs" / f"rank-{launch.rank}.log")
    trackers = Trackers(config, place)

    measuring = training = foreseen = False

    def on_stage(name: str, place: Path, done: bool) -> None:
        nonlocal measuring, training
        if folder is None:  # on another process than the main one
            return
        if name in TRAINING and not (done or foreseen):
            plan.refuse(plan.data)
        training = training or name in TRAINING
        folder.link(name, place, done)
        measuring = name == "evaluate" and not done
        if name == "evaluate" and done and not (place / report.PAGE).is_file():
            report.attempt(folder.path)
        if done:
            trackers.made(name, place)
        elif name == "train":
            trackers.begin(place)

    def begin(claims: list[Claim]) -> None:
        nonlocal foreseen
        if is_of_job(place):  # it says what becomes of that
            open_folder(claims)
        foreseen = until != "prepare" and plan.foresee()
        if folder is None:
            open_folder(claims)

    def open_folder(claims: list[Claim]) -> None:
        nonlocal folder
        folder = RunFolder(config, process.stop.lose)
        claims.append(folder.claim)
        folder.open(config)

    runner = Runner(config, launch, process.stop, trackers, lambda: process.open_world(config), begin, force, on_stage)
    process.made = runner.made
    trackers.ours = lambda: not runner.taken_over()
    plan = Plan(config, runner)
    with _word_of_the_end(place if launch.is_main else None, lambda: folder, lambda: training), runner.watched():
        try:
            getattr(plan, {**TARGETS, "lr-find": "rates", "model": "data"}[until])
            runner.still_ours()
        except BaseException as error:
            if isinstance(error, GateError) and measuring and folder is not None:  # what is not good enough is to be looked at
                report.attempt(folder.path)
            trackers.close(getattr(error, "exit_code", 1))
            if (found := told(error, process.stop)) is not error:
                raise found from error
            raise
        trackers.close(0)
        if folder is None or until != "export":
            return None
        summary = summarise(plan, runner.manifests, place)
        folder.summary(summary)
    return summary


def measure(config: Config, process: Process, what: str) -> dict[str, Any]:
    """What `bench` or `scaling` of `pipeline.stages` finds on the processes that were started; nothing stays but the prepared data."""
    if not process.launch.is_main:
        console.write_to(Path(os.devnull))
    trackers = Trackers(config, Path())

    def begin(_: list[Claim]) -> None:
        plan.foresee()

    runner = Runner(config, process.launch, process.stop, trackers, lambda: process.open_world(config), begin)
    plan = Plan(config, runner)
    data = plan.data
    cores = max(1, len(os.sched_getaffinity(0)) // process.launch.local_size)
    function = getattr(importlib.import_module(f"pipeline.stages.{what}"), what)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=config.run.artifacts) as place:
        world = process.open_world(config)
        space = Workspace(Path(place), config, process.stop, lambda: world, trackers, runner.still_ours)
        found: dict[str, Any] = function(config, data, space, process.join, cores)
        return found


@contextlib.contextmanager
def _word_of_the_end(place: Path | None, opened: Callable[[], RunFolder | None], begun: Callable[[], bool]) -> Iterator[None]:
    """Leave word in the run folder, of the main process if it has one, of how it ended; then the folder is anybody's.

    But for a mistake that was found before training had `begun`: that leaves the folder as it was, unless it is a job's.
    """
    code, message = 0, ""
    try:
        yield
    except BaseException as error:
        code, message = outcome(error)
        raise
    finally:
        folder, mistaken = opened(), code in MISTAKES and not begun()
        with contextlib.suppress(OSError):  # a full disk has been told of; a folder that is another's is left alone
            if folder and not (mistaken and folder.restored()):
                folder.status(STATES.get(code, "failed"), exit_code=code, message=message)
        if folder:
            folder.claim.leave()
        if place and mistaken:
            with contextlib.suppress(OSError):  # what cannot be looked into stays
                vacate(place, folder.claim if folder else None)


def told(error: BaseException, stop: StopFlag) -> BaseException:
    """`error`, or if it comes of the loss of another process one that says so; a loss while stopping is part of that."""
    if isinstance(error, RuntimeError) and (port := TAKEN.search(str(error))):
        return PipelineError(f"port {port[1]}, where the processes are to meet, is taken; set MASTER_PORT, or --master-port, to another")
    found = LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return error
    if stop:
        return stop.interrupted("while other processes were leaving")
    return Lost(f"another process was lost: {found[0].lower()}; {AFTERWARDS}")


def outcome(error: BaseException) -> tuple[int, str]:
    """The exit code of a run that ended with `error`, and what to say."""
    code, message = _outcome(error)
    return code, shown(hide(message))


def _outcome(error: BaseException) -> tuple[int, str]:
    if isinstance(error, PipelineError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; the same command goes on"
    if isinstance(error, OSError):
        return 1, of_the_machine(error)
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())}"
