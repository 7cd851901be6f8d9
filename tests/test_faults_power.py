"""When the power goes, what was said to be kept is there; and the model that shows it can show the contrary."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.faults import power, shim, traced
from bench.faults.keepers import Ours
from bench.faults.syscalls import Way
from pipeline.runtime import files

WAYS = [
    pytest.param(traced.run, id="strace", marks=pytest.mark.skipif(bool(traced.refused()), reason=f"strace: {traced.refused()}")),
    pytest.param(shim.run, id="shim"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [1, 2])
def test_the_checkpoint_that_was_said_to_be_done_loads(way: Way, first: int) -> None:
    assert power.checkpoints(Ours(1), 30, first=first, way=way).failures == []


@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("harm", power.HARMS)
def test_a_writer_that_forgets_one_thing_is_found_out(way: Way, harm: str) -> None:
    tally = power.checkpoints(Ours(1), 30, harm=power.HARMS[harm], way=way)
    assert 0 < tally.loads < tally.states


@pytest.mark.soak
@pytest.mark.parametrize("until", ["prepare", "train", "run"])
def test_a_stage_is_absent_or_whole_and_the_same_command_makes_the_same_bytes(until: str) -> None:
    assert power.stage(until, 5).failures == []


def left(work: Callable[[Path], object], folder: Path) -> set[tuple[tuple[str, bytes], ...]]:
    """All that is seen of the files in `folder` in a hundred states after `work` of it."""
    (folder / "work").mkdir()
    disk = power.written(lambda: work(folder / "work"), folder / "work", shim.run)
    states = set()
    for case in range(100):
        place = folder / str(case)
        place.mkdir()
        disk.after(len(disk.steps), random.Random(case), place)
        states.add(tuple(sorted((path.name, path.read_bytes()) for path in place.iterdir())))
    return states


def test_what_was_synced_with_its_name_is_in_every_state(tmp_path: Path) -> None:
    assert left(lambda folder: files.write_whole(folder / "x", b"new"), tmp_path) == {(("x", b"new"),)}


def test_what_was_only_written_may_be_absent_empty_or_whole(tmp_path: Path) -> None:
    states = left(lambda folder: (folder / "x").write_bytes(b"new"), tmp_path)
    assert {(), (("x", b""),), (("x", b"new"),)} <= states


def test_a_long_file_that_was_only_written_may_have_lost_any_page(tmp_path: Path) -> None:
    states = left(lambda folder: (folder / "x").write_bytes(b"n" * 3 * 4096), tmp_path)
    pages = {tuple(content[at : at + 1] for at in (0, 4096, 8192)) for state in states for _, content in state if len(content) == 3 * 4096}
    assert {(b"n", b"n", b"n"), (b"\0", b"n", b"n"), (b"n", b"n", b"\0")} <= pages
