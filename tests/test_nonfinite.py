"""A loss or a gradient that is no number: all processes do as train.nonfinite says, and it is never kept."""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from test_resume import results

from bench.faults import nonfinite

WHERE = ["loss", "gradient"]


def broken(where: str, steps: range, processes: int = 1) -> Callable[[int], None]:
    """Let the last process find no number in these steps, from 0."""
    case = nonfinite.Case("", where, math.nan if where == "loss" else math.inf, steps, processes, processes - 1, "")
    return functools.partial(nonfinite.breaks, case=case)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("where", WHERE)
def test_it_stops_and_no_checkpoint_holds_it(run: Run, tmp_path: Path, where: str, processes: int) -> None:
    ended = run(
        "run.checkpoint_every=2",
        "run.log_every=50",
        until="train",
        processes=processes,
        before=broken(where, range(20, 21), processes),
    )
    assert ended.code == 4
    assert "training has diverged" in ended.output
    kept = sorted(path.name for path in tmp_path.glob("artifacts/train/*/checkpoints/step-*"))
    assert kept == ["step-000000018", "step-000000020"]


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["skip", "restore"])
@pytest.mark.parametrize("where", WHERE)
def test_the_step_is_left_out_on_all_processes_and_an_interruption_changes_nothing(
    run: Run, tmp_path: Path, policy: str, where: str
) -> None:
    how: dict[str, Any] = {"until": "train", "processes": 2, "before": broken(where, range(20, 21), 2)}
    words = [f"train.nonfinite={policy}", "train.model={name: wrn_16_4, depth: 10, widen: 1}", "train.epochs=2"]
    whole = run(*words, in_folder="whole", **how)
    assert whole.code == 0, whole.output
    assert "step 21 was left out" in whole.output
    lines = [json.loads(line) for line in (tmp_path / "whole/runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/left_out" in line] == [21]
    assert run(*words, in_folder="parts", stop_at=20, **how).code == 75
    assert run(*words, in_folder="parts", **how).code == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.soak
@pytest.mark.parametrize("words", [["train.determinism=elastic"], ["run.strategy=fsdp"]])
def test_all_processes_go_back_to_the_checkpoint_that_is_being_written(run: Run, words: list[str]) -> None:
    words = [*words, "train.nonfinite=restore", "train.epochs=2"]
    ended = run(*words, until="train", processes=2, before=functools.partial(broken_while_saving, steps=range(21, 22)))
    assert ended.code == 0, ended.output
    assert "going on from step-000000020" in ended.output


def broken_while_saving(rank: int, steps: range) -> None:
    from pipeline.learning import state

    real = state.save

    def save(*arguments: Any) -> None:
        time.sleep(0.5)
        real(*arguments)

    state.save = save  # type: ignore[assignment]
    broken("loss", steps, processes=2)(rank)


def test_left_out_is_as_if_the_step_had_not_been(run: Run, tmp_path: Path) -> None:
    for policy in ("skip", "restore"):
        assert run(f"train.nonfinite={policy}", until="train", in_folder=policy, before=broken("loss", range(20, 21))).code == 0
    assert results(tmp_path / "skip") == results(tmp_path / "restore")


@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_where_no_step_is_any_good_it_stops(run: Run, policy: str) -> None:
    ended = run(f"train.nonfinite={policy}", until="train", processes=2, before=broken("loss", range(15, 1000), 2))
    assert ended.code == 4
    assert "no finite loss or gradient in 10 steps at step 25: training has diverged" in ended.output


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_single_steps_that_are_no_good_do_not_stop_it_however_many(run: Run, policy: str) -> None:
    ended = run(f"train.nonfinite={policy}", until="train", before=broken("loss", range(3, 60, 5)))
    assert ended.code == 0, ended.output


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_an_interruption_does_not_change_where_it_stops(run: Run, policy: str) -> None:
    how: dict[str, Any] = {"until": "train", "before": broken("loss", range(15, 1000))}
    assert run(f"train.nonfinite={policy}", "run.log_every=1", stop_at=21, **how).code == 75
    ended = run(f"train.nonfinite={policy}", "run.log_every=1", **how)
    assert ended.code == 4
    assert "in 10 steps at step 25" in ended.output


def test_where_all_is_well_the_policy_changes_nothing(run: Run, tmp_path: Path) -> None:
    for policy in ("stop", "skip", "restore"):
        assert run(f"train.nonfinite={policy}", "train.precision=fp16", until="train", in_folder=policy).code == 0
    assert results(tmp_path / "skip") == results(tmp_path / "stop") == results(tmp_path / "restore")


def test_a_loss_that_is_no_number_is_told_at_the_next_line(run: Run) -> None:
    ended = run("run.checkpoint_every=1000", until="train", before=broken("loss", range(20, 21)))
    assert "pipeline: the loss is nan at step 25: training has diverged" in ended.output
