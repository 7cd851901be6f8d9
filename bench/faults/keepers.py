"""Ways to keep a checkpoint, doing the same job with the same tensors: ours, accelerate's, torch's.

A keeper only saves and loads; who kills it, or pulls its plug, is a campaign's matter.
"""

import contextlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.checkpoint.api import CheckpointException  # no Exception
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pipeline.learning import state as checkpoints
from pipeline.learning.metrics import Tally
from pipeline.runtime.journal import Journal

WIDTH = 64  # two layers of it and their moments: 100 kB, so that files have pages enough to lose some
SAVES = 3  # as many are told apart

Job = tuple[nn.Module, torch.optim.AdamW]


class Keeper(Protocol):
    @property
    def name(self) -> str: ...

    def save(self, folder: Path, number: int) -> None:
        """Keep the tensors of save `number`, from 1, as the number-th save of a run does."""

    def load(self, folder: Path) -> int:
        """The number of the save that comes back as one would ask for it after a crash; 0: none does, or not exactly."""

    def any(self, folder: Path) -> int:
        """The same, where a person tries every folder that is left."""


def job(number: int) -> Job:
    """The model and the optimizer at save `number`: every tensor drawn from it."""
    generator = torch.Generator().manual_seed(number)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
            parameter.grad = torch.empty_like(parameter).normal_(generator=generator)
    optimizer.step()
    return model, optimizer


def tensors(job: Job) -> dict[str, Tensor]:
    model, optimizer = job
    moments = {f"{n}/{what}": value for n, kept in optimizer.state_dict()["state"].items() for what, value in kept.items()}
    return {**model.state_dict(), **moments}


def number_of(job: Job) -> int:
    """Which save `job` is, exactly; 0 if it is none, or a mixture."""
    found = tensors(job)
    for number in range(1, SAVES + 1):
        wanted = tensors(_job(number))
        if wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted):
            return number
    return 0


_job = job  # `number_of` calls its argument so


@dataclass(frozen=True)
class Ours:
    """The journal and the checkpoint that relies on it, as the training loop writes them."""

    keep: int
    name = property(lambda self: f"ours, keep={self.keep}")

    def save(self, folder: Path, number: int) -> None:
        state = self._state(number)
        journal = Journal(folder / "metrics.jsonl", step=number - 1)
        journal.append(number, {"loss": 1 / number})
        taken = checkpoints.snapshot(state, torch.zeros(1, 3), wanted=True, journal=journal.mark(), environment={})
        checkpoints.save(taken, folder / "checkpoints", self.keep, journal.sync)
        journal.close()

    def load(self, folder: Path) -> int:
        state = self._state(0)
        found = checkpoints.restore(state, folder, range(1), 1, {})
        (optimizer,) = state.optimizers
        assert isinstance(optimizer, torch.optim.AdamW)
        number = number_of((state.model, optimizer)) if found else 0
        return number if number == state.step else 0

    def any(self, folder: Path) -> int:
        return self.load(folder)  # it looks at all of them itself

    def _state(self, number: int) -> checkpoints.TrainState:
        model, optimizer = job(number)
        scaler = GradScaler("cpu", enabled=False)
        return checkpoints.TrainState(model, (optimizer,), scaler, [Tally.zero(torch.device("cpu"))], step=number)


@dataclass(frozen=True)
class Accelerate:
    """`save_state`: into numbered folders of which `total_limit` are kept, or always into the same."""

    total_limit: int | None
    name = property(lambda self: "accelerate save_state, " + (f"total_limit={self.total_limit}" if self.total_limit else "same folder"))

    def save(self, folder: Path, number: int) -> None:
        accelerator, _ = self._prepared(folder, number)
        accelerator.save_state(None if self.total_limit else str(folder / "checkpoint"))

    def load(self, folder: Path) -> int:
        return self._from(folder, None if self.total_limit else folder / "checkpoint")

    def any(self, folder: Path) -> int:
        places = sorted((folder / "checkpoints").glob("*")) if self.total_limit else [folder / "checkpoint"]
        return max((self._from(folder, place) for place in places), default=0)

    def _from(self, folder: Path, place: Path | None) -> int:
        accelerator, job = self._prepared(folder, 0)
        with contextlib.suppress(Exception):  # a checkpoint that cannot be read is what is counted
            accelerator.load_state(None if place is None else str(place))
            return number_of(job)
        return 0

    def _prepared(self, folder: Path, number: int) -> tuple[Accelerator, Job]:
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        project = ProjectConfiguration(
            project_dir=str(folder),
            automatic_checkpoint_naming=self.total_limit is not None,
            total_limit=self.total_limit,
            iteration=max(0, number - 1),
        )
        accelerator = Accelerator(cpu=True, project_config=project)
        model, optimizer = job(number)
        model, wrapped = accelerator.prepare(model, optimizer)
        return accelerator, (model, optimizer if wrapped is optimizer else wrapped.optimizer)


@dataclass(frozen=True)
class TorchSave:
    name: str = "torch.save, same file"

    def save(self, folder: Path, number: int) -> None:
        model, optimizer = job(number)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "checkpoint.pt")

    def load(self, folder: Path) -> int:
        model, optimizer = job(0)
        with contextlib.suppress(Exception):
            kept = torch.load(folder / "checkpoint.pt")
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            return number_of((model, optimizer))
        return 0

    def any(self, folder: Path) -> int:
        return self.load(folder)


@dataclass(frozen=True)
class Distributed:
    name: str = "torch DCP save, same folder"

    def save(self, folder: Path, number: int) -> None:
        warnings.simplefilter("ignore")
        save(dict(tensors(job(number))), checkpoint_id=folder / "checkpoint", no_dist=True)

    def load(self, folder: Path) -> int:
        warnings.simplefilter("ignore")
        blank = job(0)
        with contextlib.suppress(Exception, CheckpointException):
            load(dict(tensors(blank)), checkpoint_id=folder / "checkpoint", no_dist=True)  # into the tensors as they lie
            return number_of(blank)
        return 0

    def any(self, folder: Path) -> int:
        return self.load(folder)


PEERS: list[Keeper] = [Accelerate(1), Accelerate(2), Accelerate(None), TorchSave(), Distributed()]
