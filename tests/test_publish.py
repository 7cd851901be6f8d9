"""An export is published whole, once, with the real clients, to services on this machine."""

import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY
from hub_server import TOKEN, Hub, Repository
from processes import Ended, free_port, launch
from published import exported, predicted

from pipeline.runtime import checksums, files

Publish = Callable[..., Ended]
TARGET = "hub:me/tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, runs/tiny."""
    folder = tmp_path_factory.mktemp("made")
    assert launch(folder, ["run", *TINY, "train.epochs=1"]).code == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, for one test."""
    return Path(shutil.copytree(made, tmp_path / "here", symlinks=True))


@pytest.fixture
def publish(folder: Path) -> Publish:
    """`publish(hub, *words)`: runs/tiny to me/tiny, if no other words are given."""

    def publish(hub: Hub, *words: str, **how: Callable[[int], None]) -> Ended:
        return launch(folder, ["publish", *(words or ("tiny", TARGET))], environment=hub.environment(folder / "home"), **how)

    return publish


def impatient(rank: int) -> None:
    """`before` of `launch`: as a client that asks again, but does not wait as long in between."""
    from pipeline.runtime import hub

    hub.SILENCE = 0.2
    time.sleep = lambda seconds, /: None


def harm(folder: Path, name: str) -> None:
    path = folder / "runs/tiny/export" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def test_what_is_downloaded_from_the_hub_is_what_was_exported(publish: Publish, folder: Path) -> None:
    with Hub() as hub:
        ended = publish(hub)
        assert ended.code == 0, ended.output
        assert ended.output.splitlines()[-1].startswith(f"publish: {hub.address}/me/tiny, commit ")
        assert hub.repositories["me/tiny"].private
        there = launch(folder, [], environment=hub.environment(folder / "home"), before=download)
        assert there.code == 0, there.output
    assert {path.name: path.read_bytes() for path in (folder / "there").iterdir()} == {**exported(folder), ".gitattributes": b""}


def download(rank: int) -> None:
    """`before` of `launch`, in place of a command: with the client's own downloads, to where it keeps them, as links; to `there` a link."""
    import sys

    from huggingface_hub import snapshot_download

    Path("there").symlink_to(snapshot_download("me/tiny"))
    sys.exit(0)


def test_what_is_downloaded_from_the_hub_predicts_as_the_run_does(publish: Publish, folder: Path) -> None:
    with Hub() as hub:
        publish(hub)
        launch(folder, [], environment=hub.environment(folder / "home"), before=download)
    (folder / "few").mkdir()
    for name in ("model.onnx", "model.json", "SHA256SUMS"):
        shutil.copy(folder / "there" / name, folder / "few")
    assert predicted(folder, "there") == predicted(folder, "few") == predicted(folder, "runs/tiny")
    (folder / "few/SHA256SUMS").unlink()
    lacking = launch(folder, ["predict", "few", "images"])
    assert (lacking.code, lacking.output) == (
        3,
        "pipeline: the export in few is damaged: SHA256SUMS is missing; get it again from where it was published\n",
    )


def test_the_same_again_sends_no_file_and_makes_no_commit(publish: Publish) -> None:
    with Hub() as hub:
        publish(hub)
        first = [*hub.repositories["me/tiny"].commits]
        again = publish(hub)
        assert (again.code, again.output.splitlines()[-1]) == (
            0,
            f"publish: nothing has changed in {hub.address}/me/tiny, commit {first[-1][:8]}",
        )
        assert hub.repositories["me/tiny"].commits == first
        assert (len(first), hub.count("PUT /lfs"), hub.count("/commit/")) == (2, 2, 1)


@pytest.mark.parametrize(
    ("where", "troubles"),
    [
        ("PUT /lfs", ("cut",)),
        ("/commit/", (500,)),
        *(
            pytest.param(where, (500, "cut", "hang"), marks=pytest.mark.soak)
            for where in ("/api/validate-yaml", "/api/repos/create", "/preupload/", "/lfs/objects/batch", "PUT /lfs", "/commit/")
        ),
    ],
)
def test_after_a_failure_anywhere_the_same_command_goes_on(
    publish: Publish, folder: Path, where: str, troubles: tuple[int | str, ...]
) -> None:
    with Hub() as hub:
        for how in troubles:
            hub.fails = {where: how}
            failed = publish(hub, before=impatient)
            assert (failed.code, len(failed.output.splitlines())) == (1, 7), failed.output
            assert failed.output.splitlines()[-1].startswith(f"pipeline: {hub.address}/me/tiny: ")
            assert failed.output.endswith("; the same command goes on\n")
            assert "me/tiny" not in hub.repositories or len(hub.repositories["me/tiny"].commits) == 1, "there is no half of an export"
        hub.fails = {}
        assert publish(hub).code == 0
        assert {**exported(folder), ".gitattributes": b""} == hub.repositories["me/tiny"].files
        assert (len(hub.stored), len(hub.repositories["me/tiny"].commits)) == (2, 2)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (401, 2, "it does not know the token; make another, with the right to write, and set HF_TOKEN"),
        pytest.param(403, 2, "the token may not write there; give it that right, or name another owner", marks=pytest.mark.soak),
        pytest.param(404, 2, "there is no such owner, or it is hidden from the token", marks=pytest.mark.soak),
        pytest.param(429, 1, "it was asked too often; the same command goes on, later", marks=pytest.mark.soak),
    ],
)
def test_a_refusal_says_what_to_do(publish: Publish, status: int, code: int, advice: str) -> None:
    with Hub({"/api/repos/create": status}) as hub:
        refused = publish(hub, before=impatient)
        assert (refused.code, refused.output.splitlines()[-1]) == (
            code,
            f"pipeline: {hub.address}/me/tiny: the Hub answers {status}: it is so; {advice}",
        )


def nameless(rank: int) -> None:
    """`before` of `launch`: as where nobody knows what the names of machines stand for."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    socket.getaddrinfo = unknown  # type: ignore[assignment]


@pytest.mark.parametrize(("before", "why"), [(None, "Connection refused"), (nameless, "Name or service not known")])
def test_without_a_hub_it_ends_soon(folder: Path, before: Callable[[int], None] | None, why: str) -> None:
    endpoint = f"http://localhost:{free_port()}"
    environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
    ended = launch(folder, ["publish", "tiny", TARGET], environment=environment, before=before)
    assert (ended.code, ended.output.splitlines()[-1]) == (
        1,
        f"pipeline: cannot reach {endpoint}: {why}; see to the network, or to HF_ENDPOINT; the same command goes on",
    )


def test_without_a_token_it_says_where_to_put_one(publish: Publish, folder: Path) -> None:
    with Hub() as hub:
        environment = {**hub.environment(folder / "home"), "HF_TOKEN": ""}
        ended = launch(folder, ["publish", "tiny", TARGET], environment=environment)
        assert (ended.code, ended.output.splitlines()[-1]) == (
            2,
            "pipeline: there is no token for the Hub; set HF_TOKEN to one that may write, or type `hf auth login` once",
        )
        assert hub.asked == []


def test_a_dry_run_shows_each_file_in_columns_and_asks_nobody(publish: Publish, folder: Path) -> None:
    place = (folder / "runs/tiny/export").resolve()
    values, _ = files.read_manifest(place)
    assert values
    long = "model.aotinductor.pt2"
    (place / long).write_bytes(b"machine code")
    names = [*values["outputs"], long]
    checksums.write(place, [name for name in names if name != checksums.NAME])
    files.write_manifest(place, {**values, "outputs": files.seal(place, names)})
    with Hub() as hub:
        ended = publish(hub, "runs/tiny", TARGET, "--dry-run")
        assert ended.code == 0
        assert hub.asked == []
        shown = dict(re.findall(rf"^ +([\d,]+)  \S+ +to {hub.address}/me/tiny/(\S+)$", ended.output, re.MULTILINE))
        assert {name: size.replace(",", "") for size, name in shown.items()} == {k: str(len(v)) for k, v in exported(folder).items()}
        assert len({line.index(" to ") for line in ended.output.splitlines()[1:-1]}) == 1


@pytest.mark.parametrize("harmed", ["model.onnx", "README.md", files.MANIFEST])
def test_of_a_damaged_export_nothing_is_sent(publish: Publish, folder: Path, harmed: str) -> None:
    harm(folder, harmed)
    with Hub() as hub:
        ended = publish(hub)
        assert (ended.code, hub.asked) == (3, [])
        assert ended.output.startswith("pipeline: the export in ")
        assert f" is damaged: {harmed} has changed; nothing was sent; " in ended.output


def test_a_manifest_cannot_name_what_is_none_of_the_export(publish: Publish, folder: Path) -> None:
    place = (folder / "runs/tiny/export").resolve()
    (place.parent / "key").write_text("my key")
    values, _ = files.read_manifest(place)
    assert values
    files.write_manifest(place, {**values, "outputs": {**values["outputs"], **files.seal(place, ["../key"])}})
    with Hub() as hub:
        ended = publish(hub)
        assert (ended.code, hub.asked) == (3, [])
        assert "is damaged: manifest.json lists what is no file of the folder" in ended.output


def test_a_card_that_the_hub_does_not_understand_makes_no_repository(publish: Publish, folder: Path) -> None:
    place = (folder / "runs/tiny/export").resolve()
    (place / "README.md").write_text("---\nlibrary_name: 7\n---\n")
    values, _ = files.read_manifest(place)
    assert values
    checksums.write(place, [name for name in values["outputs"] if name != checksums.NAME])
    files.write_manifest(place, {**values, "outputs": files.seal(place, values["outputs"])})
    with Hub() as hub:
        ended = publish(hub)
        assert ended.code == 1
        assert '"library_name" must be a string' in ended.output.replace("\\", "")
        assert hub.repositories == {}


def test_a_file_that_the_repository_ignores_is_told(publish: Publish) -> None:
    with Hub() as hub:
        hub.repositories["me/tiny"] = Repository(private=True, ignored=("model.onnx",))
        ended = publish(hub)
        assert ended.code == 1
        assert "does not hold model.onnx as it was sent; is it in its .gitignore?" in ended.output


def test_a_repository_that_is_there_stays_public_and_files_of_others_stay_and_are_named(publish: Publish) -> None:
    with Hub() as hub:
        there = hub.repositories["me/tiny"] = Repository(private=False, files={"model.pt2": b"of an earlier export"})
        ended = publish(hub)
        assert ended.output.endswith("; it also holds model.pt2\n")
        assert there.files["model.pt2"] == b"of an earlier export"
        assert not there.private


def test_nothing_but_the_listed_files_is_sent(publish: Publish, folder: Path) -> None:
    secret = "planted-0123456789"
    for name in (".env", "notes.txt", "code.diff"):
        (folder / "runs/tiny/export" / name).write_text(secret)
    with Hub() as hub:
        assert publish(hub).code == 0
        heard = b"".join(hub.heard)
        assert {*hub.repositories["me/tiny"].files} == {*exported(folder), ".gitattributes"}
    for word in (secret, TOKEN, str(folder)):
        assert word.encode() not in heard


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "me/tiny"], "'me/tiny' is no target; choose from hub, wandb; write hub:owner/name or wandb:entity/project/name"),
        (["tiny", "hubb:me/tiny"], "'hubb:me/tiny' is no target; did you mean 'hub'?; write hub:owner/name or wandb:entity/project/name"),
        (["tiny", "hub:tiny"], "'hub:tiny' names no place; write hub:owner/name"),
        (["tiny", "hub:me/ti--ny"], "'hub:me/ti--ny' names no place; write hub:owner/name"),
        (["tiny", "hub:me/../tiny"], "'hub:me/../tiny' names no place; write hub:owner/name"),
        (["none", TARGET], "none is no folder of a run, nor runs/none"),
        (["runs", TARGET], "no export in {folder}/runs; give the folder of a finished run or of its export"),
    ],
)
def test_what_is_mistyped_is_said_in_one_line(publish: Publish, folder: Path, words: list[str], message: str) -> None:
    with Hub() as hub:
        ended = publish(hub, *words)
    assert (ended.code, ended.output) == (2, f"pipeline: {message.format(folder=folder)}\n")
