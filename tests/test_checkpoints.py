"""Checkpoints: written aside while training goes on, and what is said when they cannot be, or are of another machine."""

import errno
import functools
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from test_resume import results

from pipeline.learning import state


def fails_to_save(rank: int, *, at: tuple[int, ...], number: int = errno.ENOSPC) -> None:
    real = state.save

    def save(snapshot: state.Snapshot, *rest: Any) -> None:
        if snapshot.values["step"] in at:
            raise OSError(number, os.strerror(number))
        real(snapshot, *rest)

    state.save = save  # type: ignore[assignment]


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("artifacts/train/*/checkpoints/step-*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(run: Run, tmp_path: Path, processes: int) -> None:
    ended = run("run.keep=9", until="train", processes=processes, before=functools.partial(fails_to_save, at=(20,)))
    assert ended.code == 0
    assert "a checkpoint could not be written: No space left on device; the one before it is kept" in ended.output
    assert "step-000000010" in kept(tmp_path)
    assert "step-000000020" not in kept(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_whose_checkpoint_cannot_be_written_says_so_and_the_one_before_is_gone_on_from(
    run: Run, tmp_path: Path, processes: int
) -> None:
    assert run(until="train", in_folder="whole", processes=processes).code == 0
    broken = functools.partial(fails_to_save, at=tuple(range(21, 40)))
    ended = run(until="train", in_folder="parts", processes=processes, stop_at=25, before=broken)
    assert ended.code == 1
    assert "pipeline: stopped, but a checkpoint could not be written: No space left on device" in ended.output
    assert "Traceback" not in ended.output
    again = run(until="train", in_folder="parts", processes=processes)
    assert "going on from step-000000020" in again.output
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_one_that_cannot_be_written_leaves_its_room_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tensors: Any, path: Path) -> None:
        path.write_bytes(b"begun")
        if path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(state, "write", fails)
    snapshot = state.Snapshot({"weights": {}, "optimizer": {}}, {"step": 10})
    with pytest.raises(OSError, match="No space left"):
        state.save(snapshot, tmp_path / "checkpoints", 2)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_too_little_room_is_told_before_the_first_step(run: Run, tmp_path: Path) -> None:
    ended = run(until="train", before=has_little_room)
    assert ended.code == 1
    assert "MB free; make room, lower run.keep, or choose another run.artifacts folder" in ended.output
    assert not (tmp_path / "runs/tiny/metrics.jsonl").exists()


def has_little_room(rank: int) -> None:
    import shutil

    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10**4, 10**4)


def has_another_torch(rank: int) -> None:
    from pipeline.runtime.world import World

    real = World.environment
    World.environment = property(lambda world: {**real.__get__(world), "torch": "2.0"})  # type: ignore[assignment]


def test_gone_on_with_on_other_terms_it_says_which_end_exactness(run: Run) -> None:
    run(until="train", stop_at=20, before=has_another_torch)
    assert "not to the bit as before" not in run(until="train", stop_at=25, before=has_another_torch).output
    again = run("run.threads=2", until="train")
    assert again.code == 0
    assert "train: not to the bit as before: threads 1 then, 2 now, torch 2.0 then, 2." in again.output


def test_a_changed_train_section_is_another_artifact(run: Run, tmp_path: Path) -> None:
    assert run(until="train", stop_at=20).code == 75
    changed = run("train.lr=0.04", until="train", stop_at=10)
    assert "going on from" not in changed.output
    assert "train: going on from step-000000020" in run(until="train").output
