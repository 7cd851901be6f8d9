"""W&B mirrors the record through its real client, offline here, and can fail without harm."""

import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import wandb_file
from conftest import TINY, Run
from processes import below, launch

from bench.faults import nonfinite

WANDB = "run.trackers=[wandb]"


def steps(path: Path) -> list[int]:
    return [line["step"] for line in wandb_file.history(path) if "train/loss" in line]


def offline_files(folder: Path) -> list[Path]:
    return sorted((folder / "runs/tiny/wandb").glob("offline-run-*/*.wandb"))


def test_everything_reaches_an_offline_run_without_a_prompt(run: Run, tmp_path: Path) -> None:
    ended = run(WANDB)
    assert ended.code == 0, ended.output
    assert "wandb: offline, run" in ended.output
    (path,) = offline_files(tmp_path)
    mirrored = {line["step"]: line["train/loss"] for line in wandb_file.history(path) if "train/loss" in line}
    record = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert mirrored == {line["step"]: line["train/loss"] for line in record if "train/loss" in line}
    names = {name for line in wandb_file.history(path) for name in line}
    assert wandb_file.summary(path)["test/accuracy"] == ended.summary["test_accuracy"]
    assert {"validation/accuracy", "images/s", "curves", "confusion", "samples"} <= {n.split(".")[0] for n in names}
    assert set(wandb_file.artifacts(path)) == {("tiny", "model"), ("tiny-export", "export")}


def test_a_restart_is_the_same_run_and_tells_no_step_twice(run: Run, tmp_path: Path) -> None:
    stops = WANDB
    assert run(stops, until="train", stop_at=20).code == 75
    assert run(stops, until="train").code == 0
    first, second = offline_files(tmp_path)
    assert wandb_file.run_id(first) == wandb_file.run_id(second)
    assert [*steps(first), *steps(second)] == [*range(5, 61, 5), 61]


def test_going_back_to_a_checkpoint_it_tells_no_step_twice(run: Run, tmp_path: Path) -> None:
    case = nonfinite.Case("", "loss", math.nan, range(27, 28), 1, 0, "")
    ended = run(WANDB, "train.nonfinite=restore", until="train", before=functools.partial(nonfinite.breaks, case=case))
    assert "going on from step-000000020" in ended.output
    (path,) = offline_files(tmp_path)
    assert steps(path) == [*range(5, 61, 5), 61]


def test_another_recipe_is_another_run(run: Run, tmp_path: Path) -> None:
    run(WANDB, until="train")
    run(WANDB, "train.lr=0.01", until="train")
    assert len({wandb_file.run_id(path) for path in offline_files(tmp_path)}) == 2


def test_without_its_server_it_goes_on_offline_and_keeps_every_point(run: Run, tmp_path: Path) -> None:
    online = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    ended = launch(tmp_path, ["train", *TINY, WANDB], environment=online)
    assert ended.code == 0, ended.output
    assert "connection refused; going on offline" in ended.output
    (path,) = offline_files(tmp_path)
    assert steps(path) == [*range(5, 61, 5), 61]


@pytest.mark.parametrize("way", ["dies", "stops", "cannot be started"])
def test_whatever_becomes_of_the_process_aside_the_training_goes_on_and_says_so(run: Run, tmp_path: Path, way: str) -> None:
    whole = run(until="train", in_folder="whole")
    broken = run(WANDB, until="train", in_folder="broken", before=functools.partial(_hinder, way))
    assert (whole.code, broken.code) == (0, 0), broken.output
    said = {"dies": "their process ended with code -9", "stops": "not all was told within 1 s", "cannot be started": "No such file"}[way]
    assert [line.count(said) for line in broken.output.splitlines() if line.startswith("trackers: ")] == [1]
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")


def _hinder(way: str, _: int) -> None:
    """The process that trains would wait no longer than a second."""
    from pipeline.runtime import aside

    aside.PATIENCE = 1.0
    if way == "cannot be started":
        sys.executable = "/nowhere/python"
    else:
        number = signal.SIGKILL if way == "dies" else signal.SIGSTOP
        _at_step_20(lambda: _send(number, *below(os.getpid())))


def test_a_process_aside_that_takes_nothing_is_given_up(run: Run, tmp_path: Path) -> None:
    ended = run(WANDB, "run.log_every=1", until="train", before=_with_little_room)
    assert ended.code == 0, ended.output
    assert "trackers: their process takes nothing; going on without them" in ended.output


def _with_little_room(rank: int) -> None:
    from pipeline.runtime import aside

    aside.ROOM = -1


def test_what_is_told_is_told_in_spite_of_a_signal_to_all(run: Run, tmp_path: Path) -> None:
    ended = run(WANDB, until="train", before=_interrupt_all)
    assert ended.code == 75, ended.output
    (path,) = offline_files(tmp_path)
    assert steps(path) == [5, 10, 15, 20]
    assert [r.exit.exit_code for r in wandb_file.records(path) if r.WhichOneof("record_type") == "exit"] == [75]


def _interrupt_all(_: int) -> None:
    """As the terminal does at Ctrl-C, at step 20."""
    _at_step_20(lambda: _send(signal.SIGINT, *below(os.getpid()), os.getpid()))


def _send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _at_step_20(then: Callable[[], object]) -> None:
    from pipeline.runtime.mirror import Trackers

    log = Trackers.log

    def acting(self: Trackers, step: int, values: Mapping[str, float]) -> None:
        log(self, step, values)
        if step == 20:
            then()

    Trackers.log = acting  # type: ignore[method-assign]


def test_killed_and_started_again_at_once_it_tells_every_step_once(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train", kill_at=30).code == -signal.SIGKILL
    assert run(WANDB, until="train").code == 0
    first, second = offline_files(tmp_path)
    assert wandb_file.run_id(first) == wandb_file.run_id(second)
    assert [*steps(first), *steps(second)] == [*range(5, 61, 5), 61]


def test_the_process_that_trains_never_imports_the_client(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, before=_without_client).code == 0
    (path,) = offline_files(tmp_path)
    assert steps(path) == [*range(5, 61, 5), 61]


def _without_client(_: int) -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]


def test_a_tracker_that_cannot_write_costs_no_step(run: Run, tmp_path: Path) -> None:
    whole = run(until="train", in_folder="whole")
    (tmp_path / "broken/runs/tiny").mkdir(parents=True)
    (tmp_path / "broken/runs/tiny/wandb").write_text("a file where its folder should go")
    broken = run(WANDB, until="train", in_folder="broken")
    assert (whole.code, broken.code) == (0, 0)
    assert "going on without it" in broken.output
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")


def weights(folder: Path) -> bytes:
    return (folder / "runs/tiny/train/weights.safetensors").read_bytes()
