"""Everything that changes while training, and how it is kept.

If a later step depends on it and it cannot be computed from (configuration, step), it is a
field of TrainState. Nothing else is saved.

    step-<n>/weights.safetensors     parameters and buffers, by the names of the bare model
    step-<n>/optimizer.safetensors   <parameter>/<what>, with the same names
    step-<n>/average.safetensors     the running average of the weights, if there is one
    step-<n>/best.safetensors        the best weights so far, if any were validated
    step-<n>/manifest.json           the rest, and size and sha256 of each file
"""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from pipeline.errors import DataError
from pipeline.learning.metrics import Tally
from pipeline.runtime import files, strategies
from pipeline.runtime.console import say
from pipeline.runtime.strategies import bare, local

Weights = dict[str, Tensor]
Scores = dict[str, float]  # of one validation: its step, loss, accuracy, ...


@dataclass
class TrainState:
    model: nn.Module  # as wrapped for the strategy
    optimizers: tuple[Optimizer, ...]
    scaler: GradScaler
    tallies: list[Tally]  # since the last line of the log, of each virtual process
    step: int = 0  # updates done
    seconds: float = 0.0  # spent updating, over all restarts
    history: list[Scores] = field(default_factory=list)  # of all validations
    best: Weights = field(default_factory=dict)  # those of the best validation, on the main process
    average: Weights = field(default_factory=dict)  # placed as the model's are
    gradient_norm: Tensor | None = None  # of the last step, if it was measured; not kept

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def set_rate(self, rate: float) -> None:
        """Of every group, times its factor; where the rate is a tensor, in its place."""
        for group in self.groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["factor"])
            else:
                group["lr"] = rate * group["factor"]

    def forget_gradients(self) -> None:
        for group in self.groups:
            for parameter in group["params"]:
                parameter.grad = None

    def means(self, total: Callable[[Sequence[Tensor]], Tensor]) -> dict[str, float]:
        """Of the tallies, which begin anew; `total` adds over all virtual processes."""
        means = Tally(total([tally.sums for tally in self.tallies])).means()
        for tally in self.tallies:
            tally.sums.zero_()
        return means

    def weights(self, *, wanted: bool) -> Weights:
        """A copy on the CPU of what is to be validated and kept, where `wanted`; every process has to ask."""
        return strategies.gather(self.average or bare(self.model).state_dict(), wanted)

    def volatile(self) -> list[Tensor]:
        """What a step changes before its optimizer does: statistics of layers, and sums."""
        return [*(tally.sums for tally in self.tallies), *(local(buffer) for buffer in bare(self.model).buffers())]

    def is_finite(self) -> bool:
        """Whether the losses and, unless a scaler sees to them, the gradients are numbers; waits for the device."""
        found = [tally.sums for tally in self.tallies]
        if not self.scaler.is_enabled():
            gradients = [local(p.grad) for group in self.groups for p in group["params"] if p.grad is not None]
            found += torch._foreach_norm(gradients)
        return bool(torch.stack([each.isfinite().all() for each in found]).all())

    def leave_out(self, before: Sequence[Tensor]) -> None:
        """Make this step one that changes nothing; `before` is a copy of what was `volatile` then."""
        torch._foreach_copy_(self.volatile(), list(before))
        self.forget_gradients()
        self.scaler.update()
        self.step += 1

    @torch.no_grad()
    def fold(self, share: float | None) -> None:
        """Move the average by `share` of the way to the weights: 1 starts it anew, None leaves it alone."""
        if share is None:
            return
        weights = bare(self.model).state_dict()
        if share == 1 or not self.average:
            self.average = {name: value.detach().clone() for name, value in weights.items()}
            return
        floating = [name for name, value in weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([local(self.average[n]) for n in floating], [local(weights[n]) for n in floating], share)
        for name in weights.keys() - floating:
            self.average[name].copy_(weights[name])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its average for weights, if there is one."""
        weights = bare(self.model).state_dict() if self.average else {}
        before = {name: value.detach().clone() for name, value in weights.items()}
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(self.average[name])
            strategies.forget_whole(self.model)
            yield
            for name, value in weights.items():
                value.copy_(before[name])
            strategies.forget_whole(self.model)


def score(scores: Scores, metric: str) -> float:
    """Higher is better."""
    return -scores["loss"] if metric == "loss" else scores[metric]


def best(history: Sequence[Scores], metric: str) -> Scores | None:
    """The validation with the highest score; of equals, the one with the lowest loss; of those, the first."""
    return max(history, key=lambda scores: (score(scores, metric), -scores["loss"]), default=None)


def patience_lost(history: Sequence[Scores], metric: str, patience: int | None) -> bool:
    """Whether the best validation lies `patience` validations back."""
    found = best(history, metric)
    return patience is not None and found is not None and len(history) - 1 - history.index(found) >= patience


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is to hold, on the CPU and its own: training may go on while it is written."""

    tensors: dict[str, Weights]  # by file
    values: dict[str, Any]  # for the manifest

    @property
    def is_finite(self) -> bool:
        weights = [w for w in self.tensors["weights"].values() if w.is_floating_point() and w.numel()]
        return all(math.isfinite(end) for weight in weights for end in torch.aminmax(weight))  # a tenth of the time of `isfinite`


def snapshot(state: TrainState, tallies: Tensor, *, wanted: bool, over: Snapshot | None = None, **values: Any) -> Snapshot:
    """Everything that has changed, where `wanted`; every process has to ask.

    `tallies` [processes, 3] are those of every virtual process; `values` are kept besides. The memory of
    the snapshot `over`, which is no longer needed, is used again.
    """
    changing = {"weights": bare(state.model).state_dict(), "optimizer": _optimizer_tensors(state), "average": state.average}
    room = over.tensors if over else {}
    contents = {name: strategies.gather(tensors, wanted, room.get(name, {})) for name, tensors in changing.items()}
    contents["best"] = state.best
    values |= {
        "step": state.step,
        "seconds": state.seconds,
        "history": list(state.history),
        "scaler": state.scaler.state_dict(),
        "tallies": tallies.tolist(),
    }
    return Snapshot({name: tensors for name, tensors in contents.items() if tensors or name in ("weights", "optimizer")}, values)


def save(snapshot: Snapshot, folder: Path, keep: int, also: Callable[[], None] = lambda: None) -> None:
    """Write `folder/step-<n>`, whole or not at all, then drop all but the newest `keep`.

    It does not appear before `also` is done: syncing the record that it relies on.
    """
    final = folder / f"step-{snapshot.values['step']:09d}"
    partial = folder / "partial"
    files.remove(partial)
    if not folder.is_dir():
        folder.mkdir()  # no parents: a training that another life has taken over must not begin a new place
        files.sync(folder.parent)
    partial.mkdir()
    try:
        for name, tensors in snapshot.tensors.items():
            write(tensors, partial / f"{name}.safetensors")
        files.commit_folder(partial, final, snapshot.values, also)
    except OSError:
        with contextlib.suppress(OSError):
            files.remove(partial)  # the journal and the weights may need the room
        raise
    found = checkpoints(folder)
    here = found.index(final)
    for old in found[: max(0, here + 1 - keep)] + found[here + 1 :]:  # later ones could not be gone on from
        files.remove(old)


def shortage(state: TrainState, folder: Path, keep: int) -> str:
    """What is missing on the disk for `keep` checkpoints, one that is being written and the weights; "" if nothing is."""
    needed, free = room(state, folder, keep), shutil.disk_usage(folder).free
    return f"checkpoints take up to {needed / 1e6:,.0f} MB, but {folder} has {free / 1e6:,.0f} MB free" if needed > free else ""


def room(state: TrainState, folder: Path, keep: int) -> int:
    """Bytes that `keep` checkpoints, one that is being written and the weights take beyond those that are in `folder`.

    Before the first step most optimizers hold nothing yet: two tensors a parameter are counted then.
    """
    weights = [tensor for tensor in bare(state.model).state_dict().values() if isinstance(tensor, Tensor)]
    one = _bytes(weights) * (3 if state.average else 2) + (_bytes(_optimizer_tensors(state).values()) or 2 * _bytes(weights))
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    return max(0, one * (keep + 1) - there) + _bytes(weights)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of whole tensors, whatever part of them is here."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write(tensors: Weights, path: Path) -> None:
    """As safetensors.

    Raises:
        OSError: which the library calls by a name of its own.
    """
    try:
        save_file(tensors, path)
        path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets nobody else read it (safetensors 0.8), whatever the umask
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        raise


def restore(state: TrainState, space: Path, ranks: range, size: int, environment: Mapping[str, Any]) -> str:
    """Load the newest whole checkpoint in `space` whose record is there too; its name, or "" if there is none.

    This process plays the virtual `ranks` of `size`. What differs from the `environment` in which it
    was written, and may change the last digits, is said.
    """
    journal = space / "metrics.jsonl"
    for path in sorted((space / "checkpoints").glob("step-*"), reverse=True):
        manifest, broken = files.read_manifest(path)
        if manifest is None or (broken := files.damage(path, manifest["outputs"])):
            say(f"train: {path.name} is damaged ({broken or f'{files.MANIFEST} is missing'}); falling back to the one before")
            continue
        if not files.begins_with(journal, manifest.get("journal")):
            say(f"train: {path.name} belongs to another {journal.name}; falling back to the one before")
            continue
        try:
            _load(state, path, manifest, is_main=0 in ranks)
            then = dict(manifest["environment"])
            tallies = torch.tensor(manifest["tallies"], dtype=torch.float64).reshape(-1, 3)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # which say nothing of the checkpoint
            raise
        except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:  # it has other tensors, say
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise DataError(f"{path} is whole, but no checkpoint of this training ({why}); delete it and run again") from None
        if changed := [k for k in {**then, **environment} if then.get(k) != environment.get(k)]:
            text = ", ".join(f"{name} {then.get(name, 'not set')} then, {environment.get(name, 'not set')} now" for name in changed)
            say(f"train: not to the bit as before: {text}")
        for rank, tally in zip(ranks, state.tallies, strict=True):
            tally.sums.copy_(tallies[rank] if len(tallies) == size else tallies.sum(0) * (rank == 0))
        return path.name
    return ""


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first; one without a manifest does not count."""
    return sorted(p for p in folder.glob("step-*") if (p / files.MANIFEST).is_file())


def _load(state: TrainState, path: Path, manifest: dict[str, Any], is_main: bool) -> None:
    strategies.load(state.model, load_file(path / "weights.safetensors"))
    kept: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, what = key.rpartition("/")
        kept.setdefault(name, {})[what] = value
    for optimizer in state.optimizers:
        parameters = _parameters(state, optimizer)
        tensors = {
            number: {what: strategies.like(value, parameter) for what, value in kept[name].items()}
            for number, (name, parameter) in enumerate(parameters)
            if name in kept
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": tensors})
    state.step, state.seconds, state.history = int(manifest["step"]), float(manifest["seconds"]), list(manifest["history"])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(manifest["scaler"])
    if (path / "average.safetensors").exists():
        state.fold(1.0)
        for name, value in load_file(path / "average.safetensors").items():
            state.average[name].copy_(strategies.like(value, state.average[name]))
    if is_main and (path / "best.safetensors").exists():
        state.best = load_file(path / "best.safetensors")


def _optimizer_tensors(state: TrainState) -> Weights:
    return {
        f"{name}/{what}": value
        for optimizer in state.optimizers
        for name, parameter in _parameters(state, optimizer)
        for what, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _parameters(state: TrainState, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """Named, in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in bare(state.model).named_parameters()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]
