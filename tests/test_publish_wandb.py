"""An export is published whole, once, with W&B's own client, to a service on this machine."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from processes import Ended, free_port, launch
from published import exported, predicted
from tracking import settled
from wandb_service import KEY, Service

from bench.faults.unwell import Unwell

Publish = Callable[..., Ended]
TARGET = "wandb:me/models/tiny"
REGISTRY = "wandb:us/wandb-registry-model/tiny"


class Listening(Service):
    """Keeps all that it is sent, but for the header that the key is for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    def meets(self, answer: Any, content: bytes) -> bool:
        headers = "".join(f"{name}: {value}\n" for name, value in answer.headers.items() if name.lower() != "authorization")
        self.heard += [answer.path.encode(), headers.encode(), content]
        return False


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, runs/tiny, that no tracker was told of."""
    folder = tmp_path_factory.mktemp("made")
    assert launch(folder, ["run", *TINY, "train.epochs=1"]).code == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, for one test."""
    return Path(shutil.copytree(made, tmp_path / "here", symlinks=True))


@pytest.fixture
def publish(folder: Path) -> Publish:
    """`publish(environment, target)`: runs/tiny; the home folder has no key in it."""

    def publish(environment: Mapping[str, str], target: str = TARGET) -> Ended:
        home = {"HOME": str(folder / "home"), "NETRC": str(folder / "home/.netrc")}
        return launch(folder, ["publish", "tiny", target], environment={**home, **environment})

    return publish


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != "output.txt"}


def test_the_artifact_is_the_export_predicts_as_it_does_and_the_same_again_sends_nothing(publish: Publish, folder: Path) -> None:
    (folder / "runs/tiny/export/.env").write_text("planted-0123456789")
    before = everything(folder)
    with Listening() as service:
        ended = publish(service.environment)
        assert (ended.code, ended.output.splitlines()[-1]) == (0, f"publish: {TARGET}, v0")
        (made,) = service.store.artifacts
        assert (made.name, made.kind, made.project, made.aliases, made.state) == ("tiny", "model", "models", ["latest"], "COMMITTED")
        assert made.contents() == exported(folder)
        assert made.metadata["fingerprint"] == (folder / "runs/tiny/export").resolve().name
        asked, heard = len(service.asked), b"".join(service.heard)
        again = publish(service.environment)
        assert (again.code, again.output.splitlines()[-1]) == (0, f"publish: nothing has changed in {TARGET}")
        assert {*service.asked[asked:]} == {"Viewer", "GetDefaultEntity", "ServerFeaturesQuery", "ArtifactMembershipByName"}
        assert (len(service.store.artifacts), len(service.store.runs)) == (1, 1)
        assert service.store.unknown == []
        assert everything(folder) == before, "the client leaves nothing"
        there = launch(folder, [], environment={**service.environment, "WANDB_CACHE_DIR": str(folder / "home")}, before=download)
        assert there.code == 0, there.output
    assert predicted(folder, "there") == predicted(folder, "runs/tiny")
    for word in ("planted-0123456789", KEY, str(folder)):
        assert word.encode() not in heard


def download(rank: int) -> None:
    """`before` of `launch`, in place of a command: with the client's own download, into `there`."""
    import sys

    import wandb

    wandb.Api().artifact("me/models/tiny:latest").download("there")
    sys.exit(0)


def test_a_registry_links_to_it_once(publish: Publish, folder: Path) -> None:
    with Service() as service:
        ended = publish(service.environment, REGISTRY)
        assert (ended.code, ended.output.splitlines()[-1]) == (0, f"publish: {REGISTRY}, v0")
        again = publish(service.environment, REGISTRY)
        assert again.output.splitlines()[-1] == f"publish: nothing has changed in {REGISTRY}"
        (made,) = service.store.artifacts
        assert (made.name, made.project) == ("tiny-published", "pipeline")
        assert service.store.links == {"wandb-registry-model/tiny": [made]}
        assert made.contents() == exported(folder)


@pytest.mark.soak
def test_its_origin_is_the_model_that_the_run_has_told_of(publish: Publish, folder: Path) -> None:
    with Service() as service:
        words = [*TINY, "train.epochs=1", "run.trackers=[wandb]"]
        assert launch(folder, ["run", *words], environment=service.environment).code == 0
        settled(folder)
        ended = publish(service.environment)
        assert ended.output.splitlines()[-1] == f"publish: {TARGET}, v0, made from me/pipeline/tiny:best"
        made = service.store.artifacts[-1]
        (origin,) = service.store.runs[made.run].used
        assert (origin.name, origin.aliases) == ("tiny", ["best", "last", "latest"])
        origin.metadata["digest"] = "of another training"
        made.metadata["digest"] = "of another export"
        other = publish(service.environment)
        assert other.output.splitlines()[-1] == f"publish: {TARGET}, v0"


def test_a_key_that_may_not_write_is_refused_and_with_another_it_goes_on(publish: Publish, folder: Path) -> None:
    with Unwell("403", "artifact") as service:
        refused = publish(service.environment)
        assert (refused.code, len(refused.output.splitlines())) == (2, 7), refused.output
        assert refused.output.splitlines()[-1].startswith(f"pipeline: {TARGET}: ArtifactSaver.createArtifact: returned error 403")
        assert refused.output.endswith(f"; set WANDB_API_KEY to a key of {service.address} that may write there, or name another entity\n")
        assert service.store.artifacts == []
        store = service.store
    with Service(store) as well:
        assert publish(well.environment).code == 0
        assert [made.contents() for made in store.artifacts] == [exported(folder)]
        assert len(store.runs) == 1, "the second attempt is the same run"


@pytest.mark.soak
@pytest.mark.parametrize(("fault", "moment"), [("closed port", "start"), ("hang", "start"), ("dying", "artifact"), ("429", "artifact")])
def test_whatever_the_service_does_it_ends_with_a_line_and_goes_on(publish: Publish, folder: Path, fault: str, moment: str) -> None:
    with Unwell(fault, moment) as service:
        failed = publish(service.environment)
        assert (failed.code, len(failed.output.splitlines())) == (1, 7), failed.output
        assert failed.output.splitlines()[-1].startswith((f"pipeline: {TARGET}: ", f"pipeline: cannot reach {service.address}: "))
        store = service.store
    with Service(store) as well:
        assert publish(well.environment).code == 0
        assert [made.contents() for made in store.artifacts if made.state == "COMMITTED"] == [exported(folder)]


class Forgetful(Service):
    """Knows nobody."""

    def query(self, content: bytes) -> bytes:
        return b'{"data": {"viewer": null}}'


@pytest.mark.parametrize(
    ("key", "said"),
    [("abc", "WANDB_API_KEY invalid: API key must have 40+ characters, has 3"), (KEY, "Failed to verify credentials with ")],
)
def test_a_key_that_is_none_is_refused(publish: Publish, key: str, said: str) -> None:
    with Forgetful() as service:
        ended = publish({**service.environment, "WANDB_API_KEY": key})
    assert ended.code == 2
    assert ended.output.splitlines()[-1].startswith(f"pipeline: {TARGET}: {said}")
    assert ended.output.endswith(f"; set WANDB_API_KEY to a key of {service.address} that may write there, or name another entity\n")


def test_without_a_service_it_says_what_to_see_to(publish: Publish) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    ended = publish({"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY})
    assert (ended.code, ended.output.splitlines()[-1]) == (
        1,
        f"pipeline: cannot reach {address}: connection refused; see to the network, or to WANDB_BASE_URL; the same command goes on",
    )


def test_without_a_key_it_says_where_to_put_one(publish: Publish) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    ended = publish({"WANDB_BASE_URL": address})
    assert (ended.code, ended.output.splitlines()[-1]) == (
        2,
        f"pipeline: there is no key for W&B at {address}; set WANDB_API_KEY, or type `wandb login` once",
    )
