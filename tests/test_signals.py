"""A signal stops a run where it can go on, ends at once what has nothing to keep, and leaves nobody behind."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY
from processes import CONTEXT, begin, below

from bench.faults.launched import Trap, alive, start
from bench.faults.signals import Case, play, strike, undisturbed
from pipeline.runtime.signals import STOP_SIGNALS, die_with_parent

CODES = {number: 130 if number == signal.SIGINT else 143 for number in STOP_SIGNALS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What two processes make undisturbed."""
    return undisturbed(tmp_path_factory.mktemp("whole"), 2)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_during_the_imports_a_signal_ends_the_process_with_its_code_and_no_traceback(number: int) -> None:
    program = f"import os; from pipeline.runtime.signals import leave_at_signals as f; f(); os.kill(os.getpid(), {number:d})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (CODES[signal.Signals(number)], "pipeline: stopped; run the same command again\n")


def test_the_description_of_a_model_can_be_interrupted(tmp_path: Path) -> None:
    trap = Trap("describing", 0, functools.partial(strike, Case(0, "describing", "SIGINT", "rank", size=1)))
    assert start(tmp_path, ["model", *TINY], 1, trap=trap).join(60) == [130]


@pytest.mark.parametrize(
    "case",
    [
        Case(0, "waiting", "SIGINT", "all"),
        Case(1, "save", "SIGUSR2", "launcher", times=2),
        Case(2, "step", "SIGKILL", "launcher", rank=1),
        Case(3, "step", "SIGKILL", "rank", rank=1, alone=True),
    ],
    ids=lambda case: f"{case.signal} to {case.target} in {case.phase}",
)
def test_a_signal_loses_no_step_and_no_bit(tmp_path: Path, whole: tuple[bytes, bytes], case: Case) -> None:
    assert play(case, tmp_path, whole)[0] == ""


def test_a_stuck_worker_ends_with_its_process(tmp_path: Path) -> None:
    parent = CONTEXT.Process(target=_with_a_stuck_worker, args=(tmp_path / "worker",))
    parent.start()
    until((tmp_path / "worker").exists, 20, lambda: "no worker")
    parent.kill()
    parent.join()
    worker = int((tmp_path / "worker").read_text())
    until(lambda: not alive(worker), 5, lambda: "the worker has outlived its process")


def _with_a_stuck_worker(note: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_stuck, args=(note,))
    worker.start()
    worker.join()


def _stuck(note: Path) -> None:
    die_with_parent()
    draft = note.with_suffix(".draft")
    draft.write_text(str(os.getpid()))
    draft.replace(note)
    time.sleep(1000)


def test_the_process_aside_and_the_service_of_wandb_end_with_the_process_that_trains(tmp_path: Path) -> None:
    (process,) = begin(tmp_path, ["train", *TINY, "run.trackers=[wandb]", "train.epochs=100000"])
    try:
        until(lambda: bool(list(tmp_path.glob("runs/tiny/wandb/offline-run-*/*.wandb"))), 60, lambda: "wandb was not told of anything")
        started = below(process.pid or 0)
        assert started
    finally:
        process.kill()
        process.join()
    until(lambda: not any(map(alive, started)), 5, lambda: f"of {started} some have outlived their process")
