"""One trial of a sweep: what it is started as, how it goes, how it stands.

What has been done is seen as everywhere else: a trial whose stages are fresh is done, one with checkpoints goes on from them.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.arguments import STAGES, parsed
from pipeline.config import Config, typed
from pipeline.errors import ConfigError
from pipeline.plan import check, fetched, finished, foreseen
from pipeline.runtime import claims, files, journal
from pipeline.runtime.console import say
from pipeline.runtime.launch import StopFlag
from pipeline.search import METRICS, Search, Trial, command_of

LOOK, PATIENCE = 0.2, 5.0  # seconds between two looks; and for a trial that is to end at once
PROGRAMS = tuple(f"{stage}.py" for stage in (*STAGES, "run"))  # of launch/
DECISIVE = {  # of `train`, on whether it can begin
    *("model", "init", "freeze", "augment", "mean", "std", "metric"),
    *("batch_size", "steps", "epochs", "warmup", "schedule", "lr_by", "patience"),
}
WITH_US = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM: a trial whose sweep is killed stops, with a checkpoint
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Attempt:
    """A trial, and how it stands."""

    trial: Trial
    config: Config
    command: list[str]
    words: list[str]  # of the command, what follows `pipeline train`; without the run folder
    until: str  # the last stage that it makes
    state: str = "waits"  # then done, failed or stopped
    message: str = ""
    values: dict[str, float] = field(default_factory=dict)  # on the validation split, of the weights that it has kept

    @property
    def place(self) -> Path:
        return self.config.run.folder / self.config.run.name

    def look(self) -> bool:
        """Whether it is done, and its run folder shows it."""
        trained = finished(self.config, self.until)
        if trained is None or (self.place / "train").resolve() != trained.dir.resolve():
            return False
        self.state, self.message = "done", ""
        self.values = {k: v for k, v in journal.at(trained.dir / "metrics.jsonl", trained.selected["step"]).items() if k in METRICS}
        return True

    def carry_out(self, stop: StopFlag) -> None:
        """Start it, see it end, and note how."""
        self._wait_for_an_earlier_life(stop)
        if stop:
            return
        before = self._word()
        code = _run(self.command, stop)
        if self.look():
            return
        word = self._word()
        found: Mapping[str, Any] = word if word != before else {}  # the code of a launcher says little
        code = found.get("exit_code", code)
        self.state = "stopped" if code in (75, 130, 143) or (stop and code < 0) else "failed"
        self.message = found.get("message") or (f"killed by signal {-code}" if code < 0 else f"it ended with code {code}, as is told above")

    def _wait_for_an_earlier_life(self, stop: StopFlag) -> None:
        """A trial whose sweep was killed is told by the kernel to stop, but it saves first."""
        owner = claims.holder(self.place / ".run")
        if owner is not None:
            say(f"{self.place} is being worked on by pid {owner.pid} on host {owner.host}; waiting for it to end")
        while owner is not None and not stop:
            time.sleep(LOOK)
            owner = claims.holder(self.place / ".run")

    def _word(self) -> dict[str, Any]:
        """What the run folder says of the last life in it."""
        found = files.read_json(self.place / "status.json")
        return found if isinstance(found, dict) else {}


def bound(search: Search, trial: Trial, overrides: Sequence[str], name: str) -> Attempt:
    """The trial with its configuration, every choice in it found, in a run folder of its own below that of the sweep.

    Raises:
        ConfigError: it cannot be run.
    """
    words = [*overrides, *trial.words]
    command = command_of(search, words)
    try:
        if shutil.which(command[0]) is None:
            raise ConfigError(f"command: there is no {command[0]} here; for torchrun say ${{interpreter}} -m torch.distributed.run")
        own = _typed(command)
        options = parsed(own)
        config = fetched(check(typed(options.words, options.data_dir)))
        until = "export" if options.command == "run" else options.command
        if until not in STAGES[1:]:
            raise ConfigError(f"command: {options.command} trains nothing; take train, or run")
        if config.data.validation == 0:
            raise ConfigError("data.validation=0 leaves nothing to choose by")
    except ConfigError as error:
        raise ConfigError(f"trial {trial.number} ({shlex.join(trial.words)}): {error}") from None
    folder, called = config.run.folder / f"{name}-sweep", f"trial-{trial.number}"
    config = config.model_copy(update={"run": config.run.model_copy(update={"folder": folder, "name": called})})
    return Attempt(trial, config, command_of(search, [*words, f"run.folder={folder}", f"run.name={called}"]), own[1:], until)


def foresee(attempts: Sequence[Attempt]) -> None:
    """See that each can begin to train, once for all that are alike in what decides on it.

    Raises:
        ConfigError: one cannot.
    """
    known: set[str] = set()
    for attempt in attempts:
        what = attempt.config.model_dump_json(include={"data": True, "train": DECISIVE})
        try:
            if what not in known:
                foreseen(attempt.config)
        except ConfigError as error:
            raise ConfigError(f"trial {attempt.trial.number} ({shlex.join(attempt.trial.words)}): {error}") from None
        known.add(what)


def _typed(command: Sequence[str]) -> list[str]:
    """Of the whole command, what `pipeline` is told."""
    for k, word in enumerate(command):
        if Path(word).name in PROGRAMS:
            return [Path(word).stem, *command[k + 1 :]]
        if Path(word).name == "pipeline":
            return list(command[k + 1 :])
    raise ConfigError("command: it starts neither launch/train.py nor `pipeline train`, so what a trial is to be is not known")


def _run(command: Sequence[str], stop: StopFlag) -> int:
    """Start `command`, and pass on to it, once, that we are to stop; its exit code, below zero if a signal ended it.

    It has a session of its own, so that Ctrl-C comes here alone. What is no Ctrl-C is passed on as SIGTERM: of others torchrun and
    its like die.
    """
    with_us = [sys.executable, "-S", "-E", "-c", WITH_US, str(os.getpid())] if sys.platform == "linux" else []
    process = subprocess.Popen([*with_us, *command], stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    told = False
    try:
        while (code := _ended(process, LOOK)) is None:
            if stop and not told:
                told = True
                process.send_signal(signal.SIGINT if stop.signal == signal.SIGINT else signal.SIGTERM)
    except KeyboardInterrupt:  # a second Ctrl-C
        process.send_signal(signal.SIGINT)
        if _ended(process, PATIENCE) is None:
            process.kill()
        raise
    return code


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None
