"""One life works in a place; who may take it over, and what is left for the one that has lost it."""

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Run

from pipeline.config import load
from pipeline.errors import TakenOver
from pipeline.runtime import claims, files, folder
from pipeline.runtime.claims import Claim, Owner
from pipeline.runtime.folder import RunFolder


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sign of life but what a test gives."""
    monkeypatch.setattr(claims, "BEAT", 1000.0)


def take(path: Path) -> Claim | Owner:
    return claims.take(path, path)


def taken(path: Path) -> Claim:
    claim = take(path)
    assert isinstance(claim, Claim), claim
    return claim


def owned_by(claim: Claim, age: float = 0.0, **facts: object) -> None:
    """Let the claim look as if another had it, whose last sign of life is `age` seconds old."""
    path = claim.place / claims.OWNER
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(Owner.here(), **facts))))  # type: ignore[arg-type]
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def test_a_place_has_one_owner(tmp_path: Path) -> None:
    claim = taken(tmp_path / "x")
    found = take(tmp_path / "x")
    assert isinstance(found, Owner)
    assert (found.pid, claim.lost()) == (os.getpid(), "")


def test_what_its_owner_leaves_is_free_at_once(tmp_path: Path) -> None:
    taken(tmp_path / "x").leave()
    assert taken(tmp_path / "x").number == 2


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    for k in range(20):
        barrier = threading.Barrier(8)

        def come(_: int, path: Path = tmp_path / str(k), barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return isinstance(take(path), Claim)

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(come, range(8))) == 1


def test_of_many_that_come_at_once_one_takes_it_over(tmp_path: Path) -> None:
    for k in range(20):
        owned_by(taken(tmp_path / str(k)), age=claims.STALE + 1)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(take, [tmp_path / str(k)] * 8))
        assert sum(isinstance(each, Claim) for each in found) == 1


@pytest.mark.parametrize(
    ("facts", "age", "lives", "given"),
    [
        ({}, 0, True, False),
        ({}, 0, False, True),
        ({}, claims.STALE + 1, True, True),
        ({"host": "elsewhere", "kernel": "another"}, 0, False, False),
        ({"host": "elsewhere", "kernel": "another"}, claims.STALE + 1, False, True),
        ({"host": "elsewhere", "kernel": "another", "job": "7", "restart": 1}, 0, True, True),
        ({"host": "elsewhere", "kernel": "another", "job": "7", "restart": 2}, 0, True, False),
        ({"host": "elsewhere", "kernel": "another", "job": "8", "restart": 1}, 0, True, False),
    ],
    ids=["here", "here, dead", "here, paused", "elsewhere", "elsewhere, silent", "an earlier life", "the same life", "another job"],
)
def test_it_is_taken_over_from_an_owner_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], age: float, lives: bool, given: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    claim = taken(tmp_path / "x")
    owned_by(claim, age, **facts)
    if not lives:
        claim._file.close()
    assert isinstance(take(tmp_path / "x"), Claim) == given
    assert bool(claim.lost()) == given


def test_a_worker_that_outlives_its_owner_does_not_hold_it(tmp_path: Path) -> None:
    claim = taken(tmp_path / "x")
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()

    def work() -> None:
        begun.set()
        end.wait()

    worker = context.Process(target=work)
    worker.start()
    assert begun.wait(60)
    claim._file.close()  # as the system does for one that was killed
    try:
        assert isinstance(take(tmp_path / "x"), Claim)
    finally:
        end.set()
        worker.join()


def test_one_that_has_lost_it_says_to_whom(tmp_path: Path) -> None:
    old = taken(tmp_path / "x")
    owned_by(old, age=claims.STALE + 1)
    new = taken(tmp_path / "x")
    assert old.lost().startswith(f"{tmp_path}/x was taken over by {Owner.here().host} pid {os.getpid()} at ")
    assert old.lost().endswith("; this one leaves")
    assert new.lost() == ""


def test_an_owner_shows_that_it_lives_and_is_told_when_it_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    told = threading.Event()
    claim = claims.take(tmp_path / "x", tmp_path / "x", lambda why: told.set())
    assert isinstance(claim, Claim)
    path = claim.place / claims.OWNER
    os.utime(path, (0, 0))
    while path.stat().st_mtime == 0:
        assert not told.is_set()
    claim.place.rename(tmp_path / "away")
    assert told.wait(10)
    claim.leave()


def test_what_a_life_has_begun_the_next_goes_on_with(tmp_path: Path) -> None:
    old = taken(tmp_path / "x")
    (old.folder() / "kept").touch()
    old.leave()
    new = taken(tmp_path / "x")
    assert (new.folder() / "kept").exists()
    new.commit(tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.claim-2"]


@pytest.mark.parametrize("before", ["", "partial", "final"])
def test_one_that_has_lost_it_can_commit_nothing(tmp_path: Path, before: str) -> None:
    old = taken(tmp_path / "x")
    if before:
        old.folder()
    owned_by(old, age=claims.STALE + 1)
    new = taken(tmp_path / "x")
    (new.folder() / "by the new one").touch()
    if before == "final":
        new.commit(tmp_path / "x")
    for work in (lambda: old.folder(), lambda: old.folder(tmp_path / "x"), lambda: old.commit(tmp_path / "x")):
        with pytest.raises((TakenOver, FileNotFoundError)):
            work()
    old.leave()
    if before != "final":
        new.commit(tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["by the new one"]
    assert new.lost() == ""


def test_one_that_has_lost_it_takes_back_nothing_that_its_successor_says(tmp_path: Path) -> None:
    config = load(None, [f"run.folder={tmp_path}", "run.name=x"])
    old = RunFolder(config, print)
    old.open(config)
    owned_by(old.claim, age=claims.STALE + 1)
    new = RunFolder(config, print)
    new.open(config)
    new.link("prepare", tmp_path / "prepared", True)
    said = {path.name for path in new.path.iterdir()}
    with pytest.raises(FileNotFoundError):
        old.restored()
    assert {path.name for path in new.path.iterdir()} == said


def test_a_folder_is_not_vacated_under_one_that_comes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = taken(tmp_path / "x/.run")
    mine.leave()
    come: list[Claim] = []

    def nobody(path: Path) -> None:
        """As it looks just before another comes."""
        come.append(taken(path))

    monkeypatch.setattr(claims, "holder", nobody)
    folder.vacate(tmp_path / "x", mine)
    assert not come[0].lost()


def test_numbers_go_on_when_the_claims_were_removed_by_hand(tmp_path: Path) -> None:
    (tmp_path / "x.partial-9").mkdir()
    assert taken(tmp_path / "x").folder() == tmp_path / "x.partial-10"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_held_is_refused_before_anything_is_written(run: Run, tmp_path: Path, processes: int) -> None:
    claim = taken(tmp_path / "runs/tiny/.run")
    owned_by(claim, age=-3600)  # however long it takes to start
    ended = run(until="prepare", processes=processes)
    assert ended.code == 2
    (line,) = (line for line in ended.output.splitlines() if line.startswith("pipeline: "))
    assert line.startswith(f"pipeline: runs/tiny is being worked on by pid {os.getpid()} on host ")
    assert line.endswith("; wait for it to end, or choose another run.name")
    assert {p.name for p in (tmp_path / "runs/tiny").iterdir()} <= {claim.place.name, "logs"}
    assert not (tmp_path / "artifacts").exists()


def test_what_is_being_made_can_be_looked_at(run: Run, tmp_path: Path) -> None:
    assert run(until="train", stop_at=15).code == 75
    taken(tmp_path / "runs/tiny/.run")
    assert "train     not fresh under way" in run(until="status").output


def test_where_there_are_no_locks_the_signs_of_life_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    claim = taken(tmp_path / "x")
    assert isinstance(take(tmp_path / "x"), Owner)
    owned_by(claim, age=claims.STALE + 1)
    assert isinstance(take(tmp_path / "x"), Claim)


def test_on_a_full_disk_the_status_is_written_where_the_last_one_was_but_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    claim = taken(tmp_path / ".run")
    folder.write_status(tmp_path, "running", aside=claim.place, why="a longer one " * 9)
    monkeypatch.setattr(files, "write_json", full)
    folder.write_status(tmp_path, "failed", aside=claim.place)
    assert files.read_json(tmp_path / "status.json")["state"] == "failed"
    with pytest.raises(OSError, match="No space"):
        folder.write_status(tmp_path, "done", aside=tmp_path / "another's")
