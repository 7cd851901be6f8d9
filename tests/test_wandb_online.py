"""Told online, whatever becomes of the service or of those who tell it; the client is the real one, the service is on this machine."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY
from processes import begin, launch
from tracking import kill_all, lives, of_record, points, settled
from wandb_service import Service

from pipeline.runtime.trackers.wandb import file

WORDS = ["train", *TINY, "run.trackers=[wandb]", "run.log_every=2", "train.epochs=20"]


def received(service: Service) -> Counter[tuple[int, str]]:
    (run,) = service.store.runs.values()
    return Counter((row["step"], name) for row in run.history for name in row if name.startswith(("train/", "validation/")))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak)])
def test_killed_at_any_moment_and_started_again_the_service_has_every_point_once(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    with Service() as service:
        for _ in range(2 + seed):
            (process,) = begin(tmp_path, WORDS, environment=service.environment)
            time.sleep(draw.uniform(1, 2))
            kill_all(process, draw)
        ended = launch(tmp_path, WORDS, environment=service.environment)
        assert ended.code == 0, ended.output
        settled(tmp_path)
    assert received(service) == of_record(tmp_path)


def test_what_was_told_offline_is_not_told_again(tmp_path: Path) -> None:
    with Service() as service:
        assert launch(tmp_path, WORDS, environment=service.environment, stop_at=30).code == 75
        assert launch(tmp_path, WORDS, stop_at=60).code == 75
        assert launch(tmp_path, WORDS, environment=service.environment).code == 0
        (offline,) = (path for path in lives(tmp_path) if file.is_offline(path))
    assert received(service) + points(offline) == of_record(tmp_path)


def test_the_service_knows_what_each_artifact_was_made_from(tmp_path: Path) -> None:
    with Service() as service:
        assert launch(tmp_path, ["run", *WORDS[1:], "train.epochs=4"], environment=service.environment).code == 0
        settled(tmp_path)
    (run,) = service.store.runs.values()
    assert {artifact.kind for artifact in run.used} == {"dataset", "model"}
    made = {artifact.name: artifact for artifact in service.store.artifacts if artifact.kind != "run_table"}
    assert made.keys() == {"synthetic-data", "tiny", "tiny-report", "tiny-export"}
    assert made["synthetic-data"].files == {}, "data are referred to, never sent"
    assert {"index.html", "report/index.html"} & made["tiny-report"].contents().keys()
    assert service.store.unknown == []


def test_a_service_that_is_lost_on_the_way_has_every_point_after_the_next_life(tmp_path: Path) -> None:
    with Service() as service:
        (process,) = begin(tmp_path, WORDS, environment=service.environment)
        until(lambda: bool(service.store.runs), 60, lambda: "the run has not begun")
    process.join()
    assert process.exitcode == 0
    with Service(service.store) as again:
        assert launch(tmp_path, WORDS, environment=again.environment).code == 0
        settled(tmp_path)
    assert received(again) == of_record(tmp_path)
