"""A hang is found, and named; and what only takes its time is no hang."""

import functools
import json
import os
import re
import signal
from pathlib import Path

import pytest
from conftest import TINY

from bench.faults.hangs import stand_still
from bench.faults.launched import Trap, start
from pipeline.runtime.watch import Marks, Watch


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Who was killed, while nobody is."""

    def leave(code: int) -> None:
        raise Ended

    found: list[int] = []
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append(number))
    return found


class Ranks:
    """The watches of several ranks, in one process and without their threads: looks are taken by hand, six to the timeout."""

    def __init__(self, folder: Path, size: int, stage: str = "train") -> None:
        self.said: list[str] = []
        self.marks = [Marks(stage=stage) for _ in range(size)]
        self.watches = [
            Watch(marks, folder, "token", rank=rank, size=size, timeout=6.0, end=lambda code, text: self.said.append(text))
            for rank, marks in enumerate(self.marks)
        ]

    def look(self, *, times: int, moving: tuple[int, ...] = (), silent: tuple[int, ...] = ()) -> None:
        for _ in range(times):
            for rank, watch in enumerate(self.watches):
                if rank in moving:
                    self.marks[rank].at("forward")
                if rank not in silent:
                    watch._look()


def test_while_one_of_the_others_moves_nobody_hangs(tmp_path: Path, killed: list[int]) -> None:
    ranks = Ranks(tmp_path, 3)
    ranks.look(times=30, moving=(2,))
    assert not ranks.said


def test_outside_of_the_loops_nobody_hangs(tmp_path: Path, killed: list[int]) -> None:
    ranks = Ranks(tmp_path, 2, stage="")
    ranks.look(times=30)
    assert not ranks.said


def test_one_that_is_not_in_the_loop_yet_is_waited_for(tmp_path: Path, killed: list[int]) -> None:
    ranks = Ranks(tmp_path, 2)
    ranks.marks[1].stage = ""
    ranks.look(times=30)
    assert not ranks.said


def test_one_that_was_never_seen_is_waited_for(tmp_path: Path, killed: list[int]) -> None:
    ranks = Ranks(tmp_path, 2)
    ranks.look(times=30, silent=(1,))
    assert not ranks.said


def test_while_its_own_main_thread_moves_a_process_judges_nobody(tmp_path: Path, killed: list[int]) -> None:
    ranks = Ranks(tmp_path, 2)
    ranks.look(times=2, moving=(0, 1))
    ranks.look(times=30, moving=(1,), silent=(0,))
    ranks.look(times=30, moving=(0,), silent=(1,))
    assert not ranks.said


def test_what_an_earlier_start_has_left_is_not_believed(tmp_path: Path, killed: list[int]) -> None:
    (tmp_path / "1").write_text(json.dumps({"token": "another", "rank": 1, "count": 3, "beat": 3, "stage": "train"}))
    ranks = Ranks(tmp_path, 2)
    ranks.look(times=30, silent=(1,))
    assert not ranks.said


def test_of_those_that_live_the_one_that_is_behind_hangs(tmp_path: Path, killed: list[int]) -> None:
    ranks = Ranks(tmp_path, 3)
    ranks.look(times=2, moving=(0, 1, 2))
    ranks.look(times=1, moving=(0, 2))
    with pytest.raises(Ended):
        ranks.look(times=8)
    assert re.match(r"rank 1 on \S+ \(pid \d+\) hangs: no progress for 6 s", ranks.said[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_falls_silent_is_named_and_killed(tmp_path: Path, killed: list[int], rank: int) -> None:
    ranks = Ranks(tmp_path, 2)
    ranks.look(times=2, moving=(0, 1))
    ranks.watches[rank]._me["pid"] = 1  # not that of the test, which both have
    ranks.look(times=1)
    with pytest.raises(Ended):
        ranks.look(times=8, silent=(rank,))
    assert re.match(rf"rank {rank} on \S+ \(pid 1\) does not answer: no sign of life for 6 s", ranks.said[0])
    assert killed == [signal.SIGKILL]


@pytest.mark.parametrize(("kind", "size", "rank"), [("SIGSTOP", 2, 0), ("worker", 1, 0)])
def test_a_run_with_a_hanging_rank_ends(tmp_path: Path, kind: str, size: int, rank: int) -> None:
    trap = Trap("start" if kind == "worker" else "save", rank, functools.partial(stand_still, kind))
    run = start(tmp_path, ["train", *TINY, "run.trackers=[]", "run.workers=1", "run.hang_timeout=2s"], size, trap=trap, alone=True)
    codes = run.join(30)
    assert [code for code in codes if code != -signal.SIGKILL] == [1] * (size - (kind == "SIGSTOP")), run.output()
    status = json.loads((tmp_path / "runs/tiny/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert f"rank {rank} on " in status["message"]
