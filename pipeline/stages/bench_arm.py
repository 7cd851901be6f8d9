"""One way to train, on its way: so many steps as are asked for, and clocks on them."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.data.batches import Images
from pipeline.runtime.recorded import WARM_UP
from pipeline.runtime.runner import Workspace
from pipeline.runtime.watch import Marks
from pipeline.runtime.world import World
from pipeline.stages.artifacts import PreparedData
from pipeline.stages.recipe import Recipe, initial_state, normalisation
from pipeline.stages.record import Record
from pipeline.stages.train import due
from pipeline.stages.update import steps, update

SECONDS = 1.0  # for which each thing is measured
WINDOWS = 5  # of one way, each beside one of what it is compared with
ENDLESS = 10**9  # steps
PHASES = ("batch", "step", "forward", "backward", "exchange", "optimizer", "record")


@dataclass
class Clock(Marks):
    """The marks of the loop, and the seconds from each to the next."""

    now: Callable[[], float] = time.perf_counter
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def at(self, phase: str) -> None:
        now = self.now()
        if self.phase in PHASES:
            self.seconds[self.phase] += now - self.since
        self.since = now
        super().at(phase)


class Arm:
    """One way to train, on its way: the loop of `train` but for validation, for as many steps as are asked for."""

    def __init__(self, config: Config, data: PreparedData, world: World, space: Workspace) -> None:
        self.world, self._run, self._stop = world, config.run, space.stop
        nonfinite = "stop" if config.train.nonfinite == "stop" else "skip"  # there is nothing to go back to
        train = config.train.model_copy(update={"steps": ENDLESS, "nonfinite": nonfinite})
        self.recipe = Recipe.of(train, data)
        images = Images(data.open("train"), world, *normalisation(train, data))
        self.resident = images.resident
        self.state, parts = initial_state(self.recipe, data, images, world)
        batches = self.recipe.batches(images, data, world, parts)
        self.shape = batches.first_shape()
        self._batches, self._learnt = steps(self.state, self.recipe, batches, world, config.run.workers)
        self._plain = batches.steps(0, ENDLESS, config.run.workers)
        space = dataclasses.replace(space, dir=Path(tempfile.mkdtemp(dir=space.dir)), open_world=lambda: world)
        self._record = Record(space, self.state, steps=ENDLESS, batch_size=self.recipe.batch_size, epoch=self.recipe.per_epoch)
        self.threads, self._tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
        self._matmul = torch.get_float32_matmul_precision()
        self._steps(WARM_UP + 1 if self._learnt else 2)  # memory is asked for, programs are compiled, a step is recorded
        seconds = world.agree(self.seconds(1))  # on every process, since all must take as many steps
        self.windows = max(1, min(WINDOWS, int(SECONDS / seconds)))
        self.count = max(1, int(SECONDS / seconds / self.windows))  # steps in each

    def seconds(self, count: int) -> float:
        """Of a step, over `count`, after one that brings back what another arm has driven out."""
        torch.set_num_threads(self.threads)  # what belongs to the whole process, as this arm's world has set it
        torch.backends.cudnn.allow_tf32 = self._tf32
        torch.set_float32_matmul_precision(self._matmul)
        self._steps(1)
        self.world.synchronize()
        began = time.perf_counter()
        self._steps(count)
        self.world.synchronize()
        return (time.perf_counter() - began) / count

    def speed(self) -> float:
        """Images a second, over a window."""
        return self.recipe.batch_size / self.seconds(self.count)

    @property
    def recorded(self) -> bool:
        """Whether a step is launched as one."""
        return self._learnt is not None and self._learnt.is_recorded

    def phases(self, *, plain: bool = False) -> dict[str, float]:
        """Seconds a step in each, until the device has done it; of steps that are launched piece by piece if `plain`.

        A step that is launched as one is all in `step`.
        """

        def now() -> float:
            self.world.synchronize()
            return time.perf_counter()

        count = self.windows * self.count
        before, self.world.marks = self.world.marks, (clock := Clock(now=now))
        self._steps(count, plain=plain)
        clock.at("")
        self.world.marks = before
        return {phase: seconds / count for phase, seconds in clock.seconds.items()}

    def close(self) -> None:
        self._record.__exit__(None, None, None)

    def _steps(self, count: int, *, plain: bool = False) -> None:
        batches, learnt = (self._plain, None) if plain else (self._batches, self._learnt)
        for batch in self.world.marks.each(itertools.islice(batches, count)):
            lr = self.recipe.lr(self.state)
            logged = due(self.state.step + 1, self._run.log_every, ENDLESS)
            done = update(self.state, batch, self.recipe, lr, self.world, learnt=learnt, measured=logged)
            self.world.marks.at("record")
            self._record.step(done)
            if logged:
                self._record.training(lr)
            if due(self.state.step, self._run.checkpoint_every, ENDLESS):
                self._record.save(self._run.keep)
            if self.world.stopping():
                raise self._stop.interrupted("while measuring")
