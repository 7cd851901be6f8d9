"""`pipeline status`: how a run stands, and what the same command would do."""

import os
import re
import signal
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY, Run
from processes import begin, launch

from pipeline.config import load
from pipeline.plan import check
from pipeline.standing import standing


def told() -> str:
    words = [*TINY, "train.epochs=4000"]
    return "\n".join(standing(check(load(None, words)), ["pipeline", *words]))


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "stopped at"), (signal.SIGKILL, "lost, it began at")])
def test_a_run_that_goes_on_and_one_that_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, state: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told().splitlines()[0] == "runs/tiny: never run"
    (process,) = begin(tmp_path, ["train", *TINY, "train.epochs=4000"])
    until(lambda: " eta " in told() and any(tmp_path.glob("artifacts/train/*/checkpoints/step-*")), 60, told)
    now = told()
    assert re.match(r"runs/tiny: running since 20[-\d]+ [:\d]+, step [\d,]+ of 60,334, eta \d+:\d\d:\d\d\n", now), now
    assert f"worked on by pid {process.pid} on host" in now
    assert "\ntrain     not fresh under way\n" in now
    assert now.endswith("next: wait; the same command would leave at once while this one works")
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    then = told()
    assert then.startswith(f"runs/tiny: {state} 20"), then
    assert "\ntrain     not fresh goes on where it stopped\n" in then
    assert "\nevaluate  waits     for train\n" in then
    assert then.endswith("train.epochs=4000` goes on with train, evaluate, export")


def test_a_run_that_is_done_has_nothing_left_to_do(run: Run) -> None:
    assert run().code == 0
    lines = run(until="status").output.splitlines()
    assert re.fullmatch(r"runs/tiny: done at .*, test accuracy 0\.\d{4}", lines[0])
    assert [line.split()[:2] for line in lines[1:5]] == [[stage, "fresh"] for stage in ("prepare", "train", "evaluate", "export")]
    assert all(len(line) <= 80 for line in lines[:-1])
    assert re.fullmatch("next: `pipeline run .*run.name=tiny.*` finds all of it fresh", lines[-1])  # the command as it was typed


def test_a_run_is_told_of_as_it_was_made(run: Run, tmp_path: Path) -> None:
    assert run("train.epochs=1", until="train").code == 0
    asked = run("train.epochs=1", "train.lr=0.5", until="status").output.splitlines()
    assert asked[-2].endswith("train.lr=0.5` makes train, evaluate, export")
    assert asked[-1] == "  or: `pipeline run runs/tiny/config.yaml` makes evaluate, export, with train.lr=0.05, as this run was made"
    for called in ("tiny", "runs/tiny", "runs/tiny/config.yaml"):
        assert launch(tmp_path, ["status", called]).output.endswith("\nnext: `pipeline run runs/tiny/config.yaml` makes evaluate, export\n")
