"""TensorBoard is one more tracker: what it reads is the record."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run
from processes import begin, launch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracking import settled

from pipeline.config import Config
from pipeline.learning.metrics import Answers
from pipeline.runtime import files
from pipeline.runtime.trackers.tensorboard import tensorboard
from pipeline.stages.evaluate import MANY, measure

TRACKER = "run.trackers=[tensorboard]"


def read(folder: Path, name: str = "tiny") -> EventAccumulator:
    settled(folder)
    return EventAccumulator(str(folder / "runs" / name / "tensorboard")).Reload()


def test_it_shows_curves_results_and_pictures(run: Run, tmp_path: Path) -> None:
    ended = run(TRACKER)
    assert ended.code == 0, ended.output
    found = read(tmp_path)
    assert [point.step for point in found.Scalars("train/loss")] == [*range(5, 61, 5), 61]
    assert {"validation/accuracy", "images/s"} <= {*found.Tags()["scalars"]}
    assert found.Scalars("result/test/accuracy")[0].value == pytest.approx(ended.summary["test_accuracy"])
    assert "samples" in found.Tags()["images"]


def test_results_of_a_thousand_classes_are_shown(tmp_path: Path) -> None:
    classes = [f"class {k}" for k in range(MANY)]
    measured = measure(Answers.of(torch.zeros(1, MANY), torch.zeros(1, dtype=torch.int64), torch.zeros(1)), classes)
    files.write_json(tmp_path / "metrics.json", {"validation": measured, "test": measured})
    shown = tensorboard(Config(), tmp_path, tmp_path)
    shown.made("evaluate", str(tmp_path))
    shown.close(0)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Scalars("result/test/accuracy")[0].value == 1


def test_a_restart_repeats_nothing_and_loses_nothing(tmp_path: Path) -> None:
    words = ["train", *TINY, TRACKER]
    (killed,) = begin(tmp_path, words, kill_at=30)
    killed.join()
    assert launch(tmp_path, words).code == 0
    assert [point.step for point in read(tmp_path).Scalars("train/loss")] == [*range(5, 61, 5), 61]


def test_a_run_that_finds_what_another_has_made_is_shown_beside_it(run: Run, tmp_path: Path) -> None:
    assert run(TRACKER, until="train").code == 0
    assert run(TRACKER, "run.name=other", until="train").code == 0
    assert [point.step for point in read(tmp_path, "other").Scalars("train/loss")] == [*range(5, 61, 5), 61]


def test_without_the_package_it_says_how_to_get_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken/sitecustomize").mkdir(parents=True)
    (tmp_path / "broken/sitecustomize/sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    ended = run(TRACKER, until="train", before=_without_the_package)
    assert ended.code == 0
    assert "tensorboard: it is not installed; `./setup tensorboard` installs it; going on without it" in ended.output


def _without_the_package(_: int) -> None:
    sys.path.insert(0, "broken/sitecustomize")  # of which the process aside is told
