"""A checkpoint holds all that a later step depends on; the newest whole one is gone on from."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from pipeline.learning.metrics import Tally
from pipeline.learning.state import TrainState, checkpoints, restore, save, snapshot
from pipeline.runtime import files
from pipeline.runtime.journal import Journal


def new() -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return TrainState(model, (optimizer,), GradScaler("cpu", init_scale=8.0), [Tally.zero(torch.device("cpu"))])


def advance(state: TrainState, steps: int) -> None:
    """Updates that depend on all that a state has but its best weights."""
    for _ in range(steps):
        images = torch.rand(5, 3, generator=torch.Generator().manual_seed(state.step))
        (optimizer,) = state.optimizers
        optimizer.zero_grad()
        state.scaler.scale(state.model(images).square().sum()).backward()
        state.scaler.unscale_(optimizer)
        state.scaler.step(optimizer)
        state.scaler.update(state.scaler.get_scale() * 2)
        state.fold(0.5)
        state.tallies[0].add(state.model(images), torch.zeros(5, dtype=torch.int64), images.sum(1).detach())
        state.step += 1
        state.seconds += 0.25
        state.history.append({"step": state.step, "loss": 1 / state.step})
        state.best = state.weights(wanted=True)


class Kept:
    """A training's folder, with its record."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder / "checkpoints", folder / "metrics.jsonl"
        self.journal = Journal(self.record, step=0)

    def save(self, state: TrainState, keep: int = 3, processes: int = 1) -> None:
        self.journal.append(state.step, {"loss": 1 / (1 + state.step)})
        tallies = state.tallies[0].sums.expand(processes, 3)
        save(snapshot(state, tallies, wanted=True, journal=self.journal.mark(), environment={}), self.folder, keep, self.journal.sync)

    def restore(self, state: TrainState, rank: int = 0, size: int = 1) -> str:
        return restore(state, self.folder.parent, range(rank, rank + 1), size, {})

    @property
    def names(self) -> list[str]:
        return [path.name for path in checkpoints(self.folder)]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    kept.journal.close()


def content(state: TrainState) -> dict[str, Any]:
    def whole(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {name: value.tolist() for name, value in tensors.items()}

    return {
        **{name: whole(tensors) for name, tensors in snapshot(state, torch.empty(0), wanted=True).tensors.items()},
        "scaler": state.scaler.state_dict(),
        "rest": (state.step, state.seconds, copy.deepcopy(state.history), state.tallies[0].sums.tolist()),
    }


def test_what_is_restored_is_what_was_saved(kept: Kept) -> None:
    state, again = new(), new()
    advance(state, 3)
    kept.save(state)
    assert kept.restore(again) == "step-000000003"
    assert content(again) == content(state)


def test_gone_on_with_it_is_as_if_it_had_not_been_interrupted(kept: Kept) -> None:
    state, again = new(), new()
    advance(state, 3)
    kept.save(state)
    kept.restore(again)
    advance(state, 4)
    advance(again, 4)
    assert content(again) == content(state)


def test_the_newest_is_gone_on_from_and_so_many_are_kept(kept: Kept) -> None:
    state = new()
    for _ in range(4):
        advance(state, 1)
        kept.save(state, keep=2)
    assert kept.names == ["step-000000003", "step-000000004"]
    assert kept.restore(new()) == "step-000000004"


def test_the_only_one_that_is_kept_is_the_one_just_written(kept: Kept) -> None:
    state = new()
    for step in (1, 2):
        advance(state, 1)
        kept.save(state, keep=1)
        assert kept.names == [f"step-00000000{step}"]


@pytest.mark.parametrize("harmed", ["weights.safetensors", "average.safetensors", "manifest.json"])
def test_a_damaged_one_is_told_of_and_the_one_before_gone_on_from(kept: Kept, harmed: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = new()
    for _ in range(2):
        advance(state, 1)
        kept.save(state)
    path = kept.folder / "step-000000002" / harmed
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert kept.restore(new()) == "step-000000001"
    assert f"step-000000002 is damaged ({harmed} has changed)" in capsys.readouterr().out


def test_one_without_a_manifest_is_told_of_and_not_used(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    state = new()
    advance(state, 1)
    kept.save(state)
    (kept.folder / "step-000000001" / files.MANIFEST).unlink()
    assert kept.restore(new()) == ""
    assert "step-000000001 is damaged (manifest.json is missing)" in capsys.readouterr().out


def test_one_whose_record_has_changed_is_not_gone_on_from(kept: Kept) -> None:
    state = new()
    for _ in range(2):
        advance(state, 1)
        kept.save(state)
    kept.record.write_bytes(kept.record.read_bytes().replace(b"0.3333", b"0.3334"))
    assert kept.restore(new()) == "step-000000001"


@pytest.mark.parametrize("trouble", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_device_that_fails_is_no_reason_to_delete_one(kept: Kept, trouble: type[RuntimeError]) -> None:
    state, again = new(), new()
    advance(state, 1)
    kept.save(state)

    def fail(*_: object) -> None:
        raise trouble("of the device")

    again.optimizers[0].register_load_state_dict_pre_hook(fail)
    with pytest.raises(trouble, match="of the device"):
        kept.restore(again)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_open_sums_of_other_processes_are_counted_once(kept: Kept, size: int) -> None:
    state = new()
    advance(state, 2)
    kept.save(state, processes=2)
    total = torch.zeros(3, dtype=torch.float64)
    for rank in range(size):
        one = new()
        kept.restore(one, rank, size)
        total += one.tallies[0].sums
    assert total.tolist() == (2 * state.tallies[0].sums).tolist()


def test_to_look_at_the_average_leaves_the_weights_alone() -> None:
    state = new()
    advance(state, 3)
    before = content(state)
    with state.averaged():
        seen = {name: value.tolist() for name, value in state.model.state_dict().items()}
    assert seen == before["average"] != before["weights"]
    assert content(state) == before
