"""What a run tells W&B online is what the service then has; the client is the real one, the service is on this machine."""

import json
from pathlib import Path

import pytest
from conftest import TINY
from processes import Ended, launch
from wandb_service import Service

WORDS = [*TINY, "train.epochs=1", "run.trackers=[wandb]"]


def begun_with(service: Service, folder: Path, *words: str, **how: int) -> Ended:
    return launch(folder, [*words], environment={**service.environment, "HOME": str(folder)}, **how)


def test_the_service_has_every_point_the_pictures_the_summary_and_the_artifacts(tmp_path: Path) -> None:
    with Service() as service:
        ended = begun_with(service, tmp_path, "run", *WORDS, "--json")
    assert ended.code == 0, ended.output
    (run,) = service.store.runs.values()
    record = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    told = {line["step"]: line["train/loss"] for line in run.history if "train/loss" in line}
    assert told == {line["step"]: line["train/loss"] for line in record if "train/loss" in line}
    assert run.summary["test/accuracy"] == ended.summary["test_accuracy"]
    assert any(name.startswith("media/images/confusion") for name in run.files)
    assert run.exit_code == 0
    model = service.store.find("tiny:best")
    assert model is not None
    assert model.contents()["weights.safetensors"] == (tmp_path / "runs/tiny/train/weights.safetensors").read_bytes()
    assert service.store.unknown == []


@pytest.mark.soak
def test_a_training_begins_with_an_artifact_that_another_has_left(tmp_path: Path) -> None:
    with Service() as service:
        assert begun_with(service, tmp_path, "train", *WORDS).code == 0
        again = begun_with(service, tmp_path, "train", *WORDS, "train.init=wandb:me/pipeline/tiny:best", "run.name=again")
    assert again.code == 0, again.output
    assert "train: begins with artifacts/wandb/me/pipeline/tiny:best" in again.output


def test_a_restart_goes_on_with_its_run(tmp_path: Path) -> None:
    with Service() as service:
        assert begun_with(service, tmp_path, "train", *WORDS, stop_at=10).code == 75
        assert begun_with(service, tmp_path, "train", *WORDS).code == 0
    (run,) = service.store.runs.values()
    assert [line["step"] for line in run.history if "train/loss" in line] == [5, 10, 15, 16]
    assert run.exit_code == 0
