"""Training can begin with the weights of a W&B artifact; the client is the real one, the service is on this machine."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import TINY
from processes import free_port, launch
from safetensors.torch import load_file, save
from wandb_server import Service

from pipeline.config import Spec
from pipeline.errors import ConfigError
from pipeline.learning.models import build
from pipeline.runtime.files import MANIFEST
from pipeline.runtime.trackers.wandb.fetch import fetch

REFERENCE = "me/pipeline/tiny:best"
FILES = {"weights.safetensors": save({"weight": torch.arange(2000.0)}), "notes/read.me": b"best of five\n"}
CHANGED = {"weights.safetensors": FILES["weights.safetensors"][::-1]}
INIT = f"train.init=wandb:{REFERENCE}"

Fetch = Callable[..., Path]
Refused = Callable[..., None]


def found(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest that is put beside those of an artifact."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}


@pytest.fixture
def fetch_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """`fetch_with(environment, reference)`: into `artifacts`; the home folder has no key in it."""

    def fetch_with(environment: Mapping[str, str], reference: str = REFERENCE) -> Path:
        home = {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "home/.netrc")}
        for name, value in {**home, **environment}.items():
            monkeypatch.setenv(name, value)
        return fetch(reference, tmp_path / "artifacts")

    return fetch_with


@pytest.fixture
def refused(tmp_path: Path, fetch_with: Fetch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """`refused(environment, reason)`: in one line, without a word of the client's; nothing is left that could be taken for the artifact."""

    def refused(environment: Mapping[str, str], reason: str) -> None:
        with pytest.raises(ConfigError) as error:
            fetch_with(environment)
        assert str(error.value).startswith(f"train.init: wandb did not give {REFERENCE}: ")
        assert str(error.value).endswith(f"; try `wandb artifact get {REFERENCE}`")
        assert reason in str(error.value)
        assert "\n" not in str(error.value)
        assert capfd.readouterr() == ("", "")
        assert {*found(tmp_path)} == {f"artifacts/wandb/{REFERENCE}.lock"}

    return refused


def test_the_files_are_those_of_the_artifact_and_are_asked_for_once(tmp_path: Path, fetch_with: Fetch) -> None:
    with Service(FILES) as service:
        place = fetch_with(service.environment)
        assert place == tmp_path / "artifacts/wandb" / REFERENCE
        assert found(place) == FILES
        asked = list(service.asked)
        assert {*FILES} <= {*asked}
        assert fetch_with(service.environment) == place
        assert service.asked == asked


def test_nothing_is_written_elsewhere_and_nothing_is_said(tmp_path: Path, fetch_with: Fetch, capfd: pytest.CaptureFixture[str]) -> None:
    with Service(FILES) as service:
        fetch_with(service.environment)
    place = f"artifacts/wandb/{REFERENCE}"
    assert {*found(tmp_path)} == {f"{place}.lock", *(f"{place}/{name}" for name in FILES)}
    assert capfd.readouterr() == ("", "")


def test_training_begins_with_them_and_depends_on_their_content(tmp_path: Path) -> None:
    model = build(Spec(name="lenet", options={"kernel": 3, "channels": [4, 8], "hidden": [16]}), (3, 12, 12), 4)
    (tmp_path / "same.safetensors").write_bytes(weights := save(model.state_dict()))
    words = [*TINY, "train.epochs=1", "train.freeze=[0.*]"]
    with Service({**FILES, "weights.safetensors": weights}) as service:
        ended = launch(tmp_path, ["train", *words, INIT], environment=service.environment)
    assert ended.code == 0, ended.output
    assert f"train: begins with artifacts/wandb/{REFERENCE}" in ended.output
    trained = load_file(tmp_path / "runs/tiny/train/weights.safetensors")
    assert torch.equal(trained["0.weight"], model.state_dict()["0.weight"])
    for again in (INIT, "train.init=same.safetensors"):  # the service is gone
        assert "\ntrain     fresh" in launch(tmp_path, ["status", *words, again]).output


def test_processes_that_start_at_once_download_it_once(tmp_path: Path) -> None:
    with Service(FILES) as service:
        ended = launch(tmp_path, ["status", *TINY, INIT], processes=2, environment=service.environment)
        assert ended.code == 0, ended.output
        assert sorted(service.asked) == sorted({*service.asked}), "each query, and each file, once"
    assert found(tmp_path / "artifacts/wandb" / REFERENCE) == FILES


def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    with Service(FILES) as service:
        ended = launch(tmp_path, ["train", *TINY, "train.init=wandb:me/pipeline/tiny:worst"], environment=service.environment)
    assert ended.code == 2
    (line,) = ended.output.splitlines()
    assert line.startswith("pipeline: train.init: wandb did not give me/pipeline/tiny:worst: artifact membership 'tiny:worst' not found in")


def test_a_key_that_is_not_accepted_is_refused(refused: Refused) -> None:
    with Service(FILES, status=401) as service:
        refused(service.environment, f"Failed to verify credentials with {service.address}")


def test_without_a_key_nobody_is_asked_for_one(refused: Refused) -> None:
    with Service(FILES) as service:
        refused({**service.environment, "WANDB_API_KEY": ""}, "No API key configured")
        assert service.asked == []


@pytest.mark.timeout(20)
def test_without_a_service_it_ends_soon(refused: Refused) -> None:
    refused({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}"}, "connection refused")


def test_a_file_that_is_not_what_its_digest_says_is_refused_and_asked_for_anew(refused: Refused, fetch_with: Fetch) -> None:
    with Service(FILES, sent=CHANGED) as service:
        refused(service.environment, "Digest mismatch for file: weights.safetensors")
    with Service(FILES) as service:
        assert found(fetch_with(service.environment)) == FILES


@pytest.mark.parametrize("reference", ["", "tiny", "tiny:best", "pipeline/tiny:best", "me/pipeline/tiny", "me/../tiny:best"])
def test_what_names_no_artifact_is_told_how_one_is_named(fetch_with: Fetch, reference: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.init: wandb:{reference} names no artifact; write wandb:entity/project/name:alias"):
        fetch_with({}, reference)
