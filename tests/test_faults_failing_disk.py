"""A disk that fails costs a checkpoint, or stops the command with one line; never what was whole before."""

import errno
import os
from pathlib import Path

import pytest
from conftest import Run

from bench.faults import failing_disk, mounts, traced
from bench.faults.commands import Command
from pipeline.runtime import files

BEGUN, BEGINNING, BEGUN_BY_TWO = failing_disk.TRAININGS
no_strace = pytest.mark.skipif(bool(traced.refused()), reason=traced.refused() or "strace")
no_mounts = pytest.mark.skipif(bool(mounts.refused()), reason=mounts.refused() or "mounts")


@pytest.mark.soak
@no_strace
@pytest.mark.parametrize(("command", "cases"), [(BEGUN, 12), (BEGUN_BY_TWO, 4), (failing_disk.LATER, 4)], ids=str)
def test_an_error_at_a_call_that_writes_harms_nothing(command: Command, cases: int) -> None:
    tally = failing_disk.errors(command, cases)
    assert not tally.failures
    assert any(tried.hits for tried in tally.tried)


@pytest.mark.soak
@no_mounts
def test_on_a_small_disk_it_ends_with_one_line_and_goes_on_when_there_is_room() -> None:
    tally = mounts.sizes(BEGINNING, 5)
    assert not tally.failures
    assert {tried.code for tried in tally.tried} == {0, 1}


@pytest.mark.soak
@no_mounts
def test_a_folder_that_may_only_be_read_is_named() -> None:
    locks = [lock for lock in mounts.LOCKS if not lock.after and len(lock.places) == 1]
    tally = mounts.read_only(BEGUN, locks)
    assert not tally.failures
    assert {tried.code for tried in tally.tried} == {1}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_about_a_descriptor_is_one_line_that_names_the_file(run: Run, processes: int) -> None:
    assert run(until="train", processes=processes, stop_at=10).code == 75
    ended = run(until="train", processes=processes, before=seals_nothing)
    assert ended.code == 1
    assert "pipeline: Input/output error: " in ended.output
    assert "weights.safetensors" in ended.output.splitlines()[-1]
    assert "Traceback" not in ended.output


def seals_nothing(rank: int) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().match("artifacts/train/*/weights.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def test_an_error_that_knows_its_file_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there") as told, files.named(tmp_path):
        raise OSError(errno.ENOSPC, "no room", "there")
    assert told.value.filename == "there"
