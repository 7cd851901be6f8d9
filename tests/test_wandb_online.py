"""Told online, whatever becomes of the service or of those who tell it; the client is the real one, the service is on this machine."""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import until
from conftest import TINY
from processes import begin, below, launch
from tracking import end, kill_all, lives, of_record, points, settled
from wandb_service import Service

from pipeline.runtime.trackers.wandb import file

pytestmark = pytest.mark.soak

WORDS = ["train", *TINY, "run.trackers=[wandb]", "run.log_every=2", "train.epochs=20"]


def received(service: Service) -> Counter[tuple[int, str]]:
    (run,) = service.store.runs.values()
    return Counter((row["step"], name) for row in run.history for name in row if name.startswith(("train/", "validation/")))


@pytest.mark.parametrize("seed", range(3))
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
        tell = below(process.pid or 0)
    process.join()
    assert process.exitcode == 0
    end(*tell)  # as a job's end does; they would try for minutes
    with Service(service.store) as again:
        assert launch(tmp_path, WORDS, environment=again.environment).code == 0
        settled(tmp_path)
    assert received(again) == of_record(tmp_path)


@pytest.mark.parametrize("refused", [b"file_stream", b"createArtifact("])
def test_what_the_service_refuses_is_said_and_told_again_by_the_next_life(tmp_path: Path, refused: bytes) -> None:
    with Service() as service, refusing(service, refused):
        ended = launch(tmp_path, WORDS, environment=service.environment)
        assert ended.code == 0, ended.output
        assert "wandb: the service did not take everything" in ended.output
        assert "the same command sends the rest" in ended.output
        settled(tmp_path)
    with Service(service.store) as again:
        assert launch(tmp_path, WORDS, environment=again.environment).code == 0
        settled(tmp_path)
    assert received(again) == of_record(tmp_path)
    assert again.store.find("tiny:best")


@contextlib.contextmanager
def refusing(service: Service, what: bytes) -> Iterator[None]:
    """Whatever is asked by that name is answered by 403."""
    taken: Any = service.RequestHandlerClass

    def answer(request: Any) -> None:
        content = request._content()
        if what in request.path.encode() + content:
            request.send_response(403)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            request._content = lambda: content
            taken.do_POST(request)
            del request._content  # others come by the same connection

    service.RequestHandlerClass = type("Refusing", (taken,), {"do_POST": answer})
    yield
    service.RequestHandlerClass = taken
