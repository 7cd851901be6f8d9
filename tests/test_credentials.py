"""Keys, tokens and passwords are in nothing that is said or kept; a configuration that holds one is refused."""

from pathlib import Path

import pytest
from conftest import TINY, Run
from processes import launch

from bench.faults import secrets
from pipeline.config import Config, dump, load
from pipeline.credentials import hide
from pipeline.main import main

SECRET = "0123456789abcdef0123"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@host/images",
        f"https:/me:{SECRET}@host/images",  # as a path has it
        f"https://{SECRET}@host/me/it.git",
        f"s3://bucket/w.pth?X-Amz-Signature={SECRET}&X-Amz-Date=1",
        f"https://host/w.pth?sig={SECRET}",
        f"--token={SECRET}",
        f"{{'password': '{SECRET}'}}",
        f'"api_key": "{SECRET}"',
        f"Authorization: Bearer {SECRET}",
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str) -> None:
    assert SECRET not in hide(text)
    assert "***" in hide(text)


@pytest.mark.parametrize(
    "text",
    [
        "train.token: no such key; did you mean 'train.steps'?",
        "ssh://git@host/me/it.git",
        "wandb:me/pipeline/tiny:best",
        "https://host:8080/index.html?page=2",
        "s3://bucket/key=5/part-0.parquet",
        "train 15/61  validation 0.3158 (loss 1.3877)",
        dump(Config()),
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert hide(text) == text


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ([f"data.root=https://me:{SECRET}@host/data"], "data.root"),
        (["--data-dir", f"https://me:{SECRET}@host/data"], "data.root"),
        ([f"train.init=https://host/w.pth?token={SECRET}"], "train.init"),
        ([f"data.source={{name: huggingface, path: x, token: {SECRET}}}"], "data.source.token"),
        (["signed.yaml"], "train.init"),
    ],
)
def test_a_configuration_that_holds_one_is_refused_in_a_line_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("signed.yaml").write_text(f"train: {{init: 'https://host/w.pth?X-Amz-Signature={SECRET}'}}\n")
    assert main(["run", *words]) == 2
    said = "".join(capsys.readouterr())
    assert said.startswith(f"pipeline: {where}: this looks like a credential")
    assert said.count("\n") == 1
    assert SECRET not in said
    assert {path.name for path in tmp_path.rglob("*")} == {"signed.yaml"}


@pytest.mark.parametrize("word", ["--token={}", "token={}", "train.token={}", "train.lr=https://me:{}@host"])
def test_a_word_that_is_not_understood_is_said_without_it(tmp_path: Path, word: str) -> None:
    ended = launch(tmp_path, ["run", word.format(SECRET)])
    assert ended.code == 2
    assert SECRET not in ended.output


def test_an_ordinary_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(dump(load(None, TINY)))
    assert load(tmp_path / "again.yaml") == load(None, TINY)


def test_an_exception_that_holds_what_is_in_the_environment_is_told_without_it(run: Run, tmp_path: Path) -> None:
    environment = {"HTTPS_PROXY": f"http://me:{SECRET}@host:1", "HF_TOKEN": f"hf_{SECRET}"}
    ended = run(until="train", environment=environment, before=secrets.fails)
    assert ended.code == 1
    assert "RuntimeError: rank 0: no answer from http://me:***@host:1 to ***" in ended.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.soak
def test_twelve_planted_secrets_are_nowhere() -> None:
    found = {secret.where: places for secret, places, _ in secrets.campaign()}
    assert len(found) == 12
    assert {where: places for where, places in found.items() if places} == {}
