"""What the training loop tells: the journal first, then the terminal and the trackers."""

import contextlib
import math
import time
from collections.abc import Iterator
from types import TracebackType

from pipeline.errors import GateError
from pipeline.learning import state as checkpoints
from pipeline.learning.metrics import Tally
from pipeline.learning.state import TrainState
from pipeline.runtime.console import Progress
from pipeline.runtime.journal import Journal
from pipeline.runtime.runner import Workspace


class Record:
    """The clock, the journals and the progress of one training; files are written by the main process."""

    def __init__(self, space: Workspace, state: TrainState, *, steps: int, batch_size: int) -> None:
        self._space, self._state, self._steps, self._batch_size = space, state, steps, batch_size
        self._told = state.step, state.seconds
        self._mark = time.monotonic()
        if space.world.is_main:
            self._metrics = Journal(space.dir / "metrics.jsonl", step=state.step)
            self._timings = Journal(space.dir / "timings.jsonl", step=state.step)
            self._progress = Progress("train", first=state.step, total=steps, unit="step")

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._space.world.is_main:
            self._progress.close()
            self._metrics.close()
            self._timings.close()

    def step(self) -> None:
        if self._space.world.is_main:
            self._progress.step()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the clock of training stand still: for what is not an update."""
        self._space.world.synchronize()
        self._state.seconds += time.monotonic() - self._mark
        yield
        self._mark = time.monotonic()

    def training(self, lr: float) -> None:
        """The means since the last time, over all processes; empties the tally."""
        state, world = self._state, self._space.world
        means = Tally(world.sum(state.tally.sums)).means()
        _refuse_divergence(means, state.step)
        state.tally.sums.zero_()
        with self.paused():
            speed = (state.step - self._told[0]) * self._batch_size / max(state.seconds - self._told[1], 1e-9)
            self._told = state.step, state.seconds
            if world.is_main:
                self._write({"train/loss": means["loss"], "train/accuracy": means["accuracy"], "train/lr": lr}, {"images/s": speed})
                shown = {
                    "loss": f"{means['loss']:.4f}",
                    "lr": f"{lr:.3g}",
                    "images/s": f"{speed:,.0f}",
                    "accuracy": f"{means['accuracy']:.4f}",
                }
                self._progress.tell(state.step, shown, (self._steps - state.step) * self._batch_size / speed)

    def validation(self, means: dict[str, float]) -> None:
        """What was measured on the validation split."""
        _refuse_divergence(means, self._state.step)
        if self._space.world.is_main:
            self._write({f"validation/{name}": value for name, value in means.items() if name != "step"}, {})
            self._progress.tell_also(self._state.step, {"validation": f"{means['accuracy']:.4f} (loss {means['loss']:.4f})"})

    def save(self, keep: int) -> None:
        """A checkpoint, after the lines that it relies on."""
        with self.paused():
            tallies = self._space.world.gather(self._state.tally.sums)
            contents = checkpoints.snapshot(self._state, wanted=self._space.world.is_main)
            if self._space.world.is_main:
                checkpoints.save(self._state, contents, self._space.dir / "checkpoints", keep, tallies, self._metrics.sync())
            self._space.world.barrier()  # no one leaves while it is written: a launcher would end it

    def _write(self, metrics: dict[str, float], timings: dict[str, float]) -> None:
        self._metrics.append(self._state.step, metrics)
        if timings:
            self._timings.append(self._state.step, timings)
        self._space.trackers.log(self._state.step, {**metrics, **timings})


def _refuse_divergence(means: dict[str, float], step: int) -> None:
    if not math.isfinite(means["loss"]):
        raise GateError(f"the loss is {means['loss']} at step {step}: training has diverged; lower train.lr")
