"""Whichever process is killed, and when: nothing is left running, and the same command makes what it would have made."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.faults import kills, launcher
from bench.faults.strikes import LAUNCHER, UPDATE, Strike

SAMPLE = (3, 5, 8, 9, 11, 13, 15, 21, 24, 37)  # cheap ones, of many kinds


@pytest.mark.soak
def test_killed_in_the_middle_of_a_checkpoint_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = kills.undisturbed(tmp_path / "whole", "momentum", 1, "checkpoint")
    strike = Strike("pipeline.learning.state:save_file", call=4, after=True)
    outcome = kills.carried_out(kills.Case(0, "momentum", 1, False, "checkpoint", [strike]), whole, tmp_path / "killed")
    assert not outcome.failures
    assert outcome.ends[0].came


@pytest.mark.soak
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    outcomes = kills.campaign(SAMPLE, tmp_path, at_once=2)
    assert [str(outcome.case) for outcome in outcomes if outcome.wrong] == []


@pytest.mark.soak
@pytest.mark.parametrize("victim", [0, 1, LAUNCHER])
def test_whichever_process_is_killed_none_is_left(tmp_path: Path, victim: int) -> None:
    strike = Strike(UPDATE, call=9, by=max(victim, 0), victim=victim)
    end = kills.struck(kills.Case(0, "workers", 2, False, "in the batch", ()).how(strike), tmp_path)
    assert end.came
    assert end.orphans == []


def test_what_is_left_is_found_whoever_is_its_parent_by_now(tmp_path: Path) -> None:
    orphaned = "import subprocess; subprocess.Popen(['sleep', '60'])"  # which comes back when it sleeps; `&` of a shell, when it is to
    subprocess.run([sys.executable, "-c", orphaned], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    left = launcher.left(tmp_path)
    assert [launcher.described(pid) for pid in left] == ["sleep 60 "]
    launcher.end(left)
    deadline = time.monotonic() + 10
    while launcher.left(tmp_path):
        assert time.monotonic() < deadline
