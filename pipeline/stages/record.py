"""What the training loop tells: the journal first, then the terminal and the trackers."""

import contextlib
import datetime
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from pipeline.errors import GateError, PipelineError
from pipeline.learning import state as checkpoints
from pipeline.learning.state import Snapshot, TrainState
from pipeline.runtime import journal
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.journal import Journal
from pipeline.runtime.runner import Workspace

HOPELESS = 10  # steps left out
NONE_FINITE = f"no finite loss or gradient in {HOPELESS} steps"


class Record:
    """The clock, the journals and the progress of one training; files are written by the main process."""

    def __init__(self, space: Workspace, state: TrainState, *, steps: int, batch_size: int, epoch: float) -> None:
        self._space, self._state, self._batch_size = space, state, batch_size
        self._mark = time.monotonic()
        self._told = state.step, state.seconds, space.world.marks.waited
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._taken: Snapshot | None = None
        known = journal.read(space.dir / "metrics.jsonl") if space.world.is_main else []
        self._left_out = space.world.agree(left_out_last(known, state.step))  # steps, one after the other
        if space.world.is_main:
            self._metrics = Journal(space.dir / "metrics.jsonl", step=state.step)
            self._timings = Journal(space.dir / "timings.jsonl", step=state.step)
            self._timings.append(state.step, {"start": datetime.datetime.now().astimezone().isoformat(timespec="seconds")})
            space.trackers.record()
            self._progress = show_progress("train", first=state.step, total=steps, units="steps", epoch=epoch)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._written()
        self._writer.shutdown()
        if self._space.world.is_main:
            self._progress.close()
            first = contextlib.suppress(OSError) if error else contextlib.nullcontext()  # a disk that is full hides nothing else
            with first, contextlib.closing(self._timings), contextlib.closing(self._metrics):
                pass

    def step(self, done: bool) -> None:
        """One has been `done`, or left out.

        Raises:
            GateError: too many were left out.
        """
        step, main = self._state.step, self._space.world.is_main
        self._left_out = 0 if done else self._left_out + 1
        if main:
            self._progress.step()
        if main and not done:
            say(f"train: step {step} was left out: its loss or a gradient is no number")
            self._write({"train/left_out": 1}, {})
        if self._left_out == HOPELESS:
            raise diverged(NONE_FINITE, step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the clocks of training stand still, that of waiting for batches too: for what is not an update."""
        marks = self._space.world.marks
        self._space.world.synchronize()
        self._state.seconds += time.monotonic() - self._mark
        waited = marks.waited
        yield
        marks.waited = waited
        self._mark = time.monotonic()

    def training(self, lr: float) -> None:
        """The means since the last time, over all processes; empties the tally."""
        state, world = self._state, self._space.world
        means = state.means(world.total)
        if not means:  # all steps were left out
            return
        _refuse_divergence(means, state.step)
        with self.paused():
            timings = self._timed()
            speed = timings["images/s"]
            if world.is_main:
                norm = math.nan if state.gradient_norm is None else float(state.gradient_norm)
                slope = {"train/gradient_norm": norm} if math.isfinite(norm) else {}  # of a float16 step that is left out it is infinite
                self._write({"train/loss": means["loss"], "train/accuracy": means["accuracy"], "train/lr": lr, **slope}, timings)
                shown = {
                    "loss": f"{means['loss']:.4f}",
                    "accuracy": f"{means['accuracy']:.4f}",
                    "lr": f"{lr:.3g}",
                    "images/s": f"{speed:,.0f}",
                }
                self._progress.tell(shown)

    def _timed(self) -> dict[str, float]:
        """Of this process, since the last time; its memory since it began."""
        state, marks = self._state, self._space.world.marks
        step, seconds, waited = self._told
        self._told = state.step, state.seconds, marks.waited
        passed = max(state.seconds - seconds, 1e-9)
        return {
            "images/s": (state.step - step) * self._batch_size / passed,
            "data_wait": (marks.waited - waited) / passed,
            "memory_mb": self._space.world.peak_memory() / 1e6,
        }

    def validation(self, means: dict[str, float]) -> None:
        """What was measured on the validation split."""
        _refuse_divergence(means, self._state.step)
        if self._space.world.is_main:
            self._write({f"validation/{name}": value for name, value in means.items() if name != "step"}, {})
            self._progress.tell_also({"validation": f"{means['accuracy']:.4f} (loss {means['loss']:.4f})"})

    def save(self, keep: int) -> None:
        """Take a checkpoint, which is written while training goes on; the one before has been written by then.

        Raises:
            GateError: the weights are no numbers.
        """
        state, world = self._state, self._space.world
        self._space.still_ours()
        with self.paused():
            self._written()
            tallies = world.gather(torch.stack([tally.sums for tally in state.tallies])).flatten(0, 1)
            also = {"journal": self._metrics.mark() if world.is_main else {}, "environment": world.environment}
            taken = self._taken = checkpoints.snapshot(state, tallies, wanted=world.is_main, over=self._taken, **also)
            if world.any(not taken.is_finite):
                raise diverged("the weights are no finite numbers", state.step)
            if world.is_main:
                place = self._space.dir / "checkpoints"
                self._writing = self._writer.submit(checkpoints.save, taken, place, keep, self._metrics.sync)

    def saved(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            PipelineError: on every process, if it cannot be written.
        """
        if trouble := self._space.world.agree(self._written()):
            raise PipelineError(f"stopped, but {trouble}; the same command goes on from the checkpoint before")

    def _written(self) -> str:
        """Wait for the checkpoint that is being written; what went wrong, if that is the machine's fault: training goes on without it."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except OSError as error:
            trouble = f"a checkpoint could not be written: {error.strerror or error}"
            say(f"train: {trouble}; the one before it is kept")
            return trouble
        return ""

    def _write(self, metrics: dict[str, float], timings: dict[str, float]) -> None:
        self._metrics.append(self._state.step, metrics)
        if timings:
            self._timings.append(self._state.step, timings)
        self._space.trackers.log(self._state.step, {**metrics, **timings})


def left_out_last(lines: Sequence[Mapping[str, Any]], step: int) -> int:
    """How many steps up to `step` were left out, one after the other, by the lines of a journal."""
    found = {line["step"] for line in lines if "train/left_out" in line}
    return next(count for count in itertools.count() if step - count not in found)


def diverged(what: str, step: int) -> GateError:
    return GateError(f"{what} at step {step}: training has diverged; lower train.lr, or see train.nonfinite")


def _refuse_divergence(means: dict[str, float], step: int) -> None:
    if not math.isfinite(means["loss"]):
        raise diverged(f"the loss is {means['loss']}", step)
