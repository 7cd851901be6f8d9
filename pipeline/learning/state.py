"""Everything that changes while training, and how it is kept.

If a later step depends on it and it cannot be computed from (configuration, step), it is a
field of TrainState. Nothing else is saved.

    step-<n>/weights.safetensors     parameters and buffers, by the names of the bare model
    step-<n>/optimizer.safetensors   <parameter>/<what>, with the same names
    step-<n>/best.safetensors        the best weights so far, if any were validated
    step-<n>/manifest.json           the rest, and size and sha256 of each file
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from pipeline.learning.metrics import Tally
from pipeline.runtime import files
from pipeline.runtime.console import say

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Best:
    """The weights with the highest validation accuracy so far; of equals, those with the lowest loss."""

    step: int
    accuracy: float
    loss: float
    weights: Weights


@dataclass
class TrainState:
    model: nn.Module  # as wrapped for the strategy
    optimizer: Optimizer
    tally: Tally  # since the last line of the log
    step: int = 0  # updates done
    seconds: float = 0.0  # spent updating, over all restarts
    best: Best | None = field(default=None)

    @property
    def bare(self) -> nn.Module:
        """The model without its wrapper: the same keys everywhere."""
        return self.model.module if isinstance(self.model, DataParallel | DistributedDataParallel) else self.model

    def weights(self) -> Weights:
        """A copy on the CPU."""
        return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in self.bare.state_dict().items()}


def save(state: TrainState, folder: Path, keep: int, tallies: Tensor, journal: Mapping[str, Any]) -> None:
    """Write `folder/step-<n>`, whole or not at all, then drop all but the newest `keep`.

    `tallies` [processes, 3] are those of every process; `journal` is the size and digest of the record up to here.
    """
    final = folder / f"step-{state.step:09d}"
    partial = folder / "partial"
    files.remove(partial)
    partial.mkdir(parents=True)
    save_file(state.weights(), partial / "weights.safetensors")
    save_file(_optimizer_tensors(state), partial / "optimizer.safetensors")
    best = None
    if state.best is not None:
        save_file(state.best.weights, partial / "best.safetensors")
        best = {"step": state.best.step, "accuracy": state.best.accuracy, "loss": state.best.loss}
    values = {"step": state.step, "seconds": state.seconds, "best": best, "tallies": tallies.tolist(), "journal": journal}
    files.commit_folder(partial, final, values)
    found = checkpoints(folder)
    here = found.index(final)
    for old in found[: max(0, here + 1 - keep)] + found[here + 1 :]:  # later ones could not be gone on from
        files.remove(old)


def restore(state: TrainState, folder: Path, journal: Path, rank: int, size: int) -> str:
    """Load the newest whole checkpoint in `folder` whose record is in `journal`; its name, or "" if there is none."""
    for path in reversed(checkpoints(folder)):
        manifest = files.read_json(path / files.MANIFEST)
        if not isinstance(manifest, dict):
            continue
        if broken := files.damage(path, manifest["outputs"]):
            say(f"train: {path.name} is damaged ({broken}); falling back to the one before")
            continue
        if not files.begins_with(journal, manifest["journal"]):
            say(f"train: {path.name} belongs to another {journal.name}; falling back to the one before")
            continue
        _load(state, path, manifest)
        tallies = torch.tensor(manifest["tallies"], dtype=torch.float64)
        mine = tallies[rank] if len(tallies) == size else tallies.sum(0) * (rank == 0)
        state.tally.sums.copy_(mine)
        return path.name
    return ""


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first; one without a manifest does not count."""
    return sorted(p for p in folder.glob("step-*") if (p / files.MANIFEST).is_file())


def _load(state: TrainState, path: Path, manifest: dict[str, Any]) -> None:
    state.bare.load_state_dict(load_file(path / "weights.safetensors"))
    names = {name: number for number, name in enumerate(_names(state))}
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, what = key.rpartition("/")
        kept.setdefault(names[name], {})[what] = value
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": kept})
    state.step, state.seconds = manifest["step"], manifest["seconds"]
    if manifest["best"] is not None:
        state.best = Best(**manifest["best"], weights=load_file(path / "best.safetensors"))


def _optimizer_tensors(state: TrainState) -> Weights:
    names = _names(state)
    kept = state.optimizer.state_dict()["state"]
    return {
        f"{names[number]}/{what}": value.detach().cpu().contiguous()
        for number, values in kept.items()
        for what, value in values.items()
        if value is not None
    }


def _names(state: TrainState) -> list[str]:
    """The parameters' names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in state.bare.named_parameters()}
    return [names[id(p)] for group in state.optimizer.param_groups for p in group["params"]]
