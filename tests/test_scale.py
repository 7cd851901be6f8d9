"""`pipeline scale`: how much faster several processes train than one, measured on processes that it starts itself."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from processes import Ended, launch

from pipeline.config import load
from pipeline.scale import counts, draw, summed, table

WORDS = [*TINY, "train.batch_size=12"]


def measuring(_: int, words: list[str]) -> None:
    """Be one of the processes that `scale` starts."""
    from pipeline.scale import work
    from pipeline.stages import bench_arm

    bench_arm.SECONDS = 0.02
    sys.exit(work(words))


def found(folder: Path, processes: int, *words: str) -> dict[str, Any]:
    ended = launch(folder, ["scale"], processes=processes, before=partial(measuring, words=[*WORDS, *words]))
    assert ended.code == 0, ended.output
    return ended.summary


def test_a_number_of_processes_is_measured_with_a_batch_for_each_and_with_one_shared_out(tmp_path: Path) -> None:
    several = found(tmp_path, 2)
    assert (several["weak"]["batch_size"], several["strong"]["batch_size"]) == (24, 12)
    assert min(several["weak"]["seconds"], several["strong"]["seconds"]) > 0
    alone = found(tmp_path, 1)
    assert alone["weak"] == alone["strong"]
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == ["prepare"]


def test_a_batch_that_cannot_be_shared_out_is_told_with_its_reason(tmp_path: Path) -> None:
    several = found(tmp_path, 2, "train.batch_size=1")
    assert several["strong"] == {"refused": "train.batch_size: 1 images cannot be shared out to 2 processes"}
    assert several["weak"]["batch_size"] == 2


def turn(batch_size: int, seconds: float) -> dict[str, Any]:
    return {"batch_size": batch_size, "seconds": seconds, "threads": 1}


ROUNDS = [
    {
        1: {"weak": turn(10, 1.0 * slow), "strong": turn(10, 1.0 * slow)},
        2: {"weak": turn(20, 1.25 * slow), "strong": {"refused": "too small"}},
    }
    for slow in (1, 2, 3)
]


def test_an_efficiency_is_that_beside_one_process_in_the_same_round() -> None:
    alone, several = summed(ROUNDS)
    assert alone["strong"]["efficiency"] == 1
    assert several["weak"]["efficiencies"] == pytest.approx([0.8, 0.8, 0.8])
    assert several["weak"]["images_per_second"] == 8
    assert several["strong"] == {"refused": "too small"}


def test_its_table_fits_80_columns_and_says_how_far_it_is_efficient(tmp_path: Path) -> None:
    lines = [*table(load(), summed(ROUNDS))]
    assert max(map(len, lines)) <= 80, lines
    assert "a batch of its own for each: efficient (80% or more) on up to 2 processes" in lines
    assert "2 processes, one batch shared out: too small" in lines
    draw(summed(ROUNDS), tmp_path / "a" / "scaling.png")
    assert (tmp_path / "a" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_processes_are_doubled_up_to_the_number_that_is_asked_for() -> None:
    assert [counts(most) for most in (1, 4, 6)] == [[1], [1, 2, 4], [1, 2, 4, 6]]


def test_within_a_launch_it_is_a_matter_of_configuration(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["scale", *TINY], processes=2)
    assert ended.code == 2
    assert "run it without torchrun" in ended.output
    ended = launch(tmp_path, ["scale", *TINY, "train.batch_size=all"])
    assert ended.code == 2
    assert "give a number" in ended.output


def one_round(_: int) -> None:
    import pipeline.scale

    pipeline.scale.ROUNDS = 1
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(pipeline.scale.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


@pytest.mark.soak
def test_the_command_starts_its_processes_and_leaves_a_picture(tmp_path: Path) -> None:
    ended: Ended = launch(tmp_path, ["scale", *WORDS, "--up-to", "2", "--json", "--out", "curve.png"], before=one_round)
    assert ended.code == 0, ended.output
    assert [each["processes"] for each in json.loads(ended.output.splitlines()[-1])["counts"]] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "curve.png", "output.txt"]


def test_what_a_process_complains_of_is_told(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["scale", *WORDS, "data.source=folder", "data.root=nowhere", "--up-to", "1"], before=one_round)
    assert ended.code == 3
    assert ended.output.startswith("pipeline: 1 process: nowhere is not there; give the folder"), ended.output
