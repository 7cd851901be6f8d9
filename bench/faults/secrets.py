"""Twelve secrets, planted where people have them, are in nothing that the pipeline makes, says or sends.

    python -m bench.faults.secrets

A checkout with a `.env` and a remote that holds a token, a ~/.netrc, a configuration file, and an environment with keys and a proxy;
in it the whole pipeline on one process and on two, W&B offline and online, a run that is interrupted and gone on with, one that fails
with an exception that holds what it should not, an export that is published, commands that have a secret in an argument, jobs that are
submitted, and the doctor, the reports and the board. Then every file, every line that was printed, every byte that a service was sent,
all that the board gives out, and the command line of every process that was started is searched.
"""

import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster import until
from conftest import TINY
from hub_server import Hub
from processes import begin, free_port, launch
from tracking import settled
from wandb_service import Service

from bench.faults.report import Row, report

WORDS = [*TINY, "train.epochs=1", "run.trackers=[wandb, tensorboard]"]
PLANTED = ("home/.netrc", ".env", ".git/config", "signed.yaml")  # below the folder, by people


@dataclass(frozen=True)
class Secret:
    where: str
    value: str

    def is_in(self, content: bytes) -> bool:
        """As it is, or as it is written in a URL or a header."""
        plain = self.value.encode()
        coded = [base64.b64encode(b"api:" + plain), base64.b64encode(plain), quote(self.value, safe="").encode()]
        return any(form in content for form in (plain, *coded))


VARIABLES = {
    "WANDB_API_KEY": "{}",
    "AWS_SECRET_ACCESS_KEY": "{}",
    "HF_TOKEN": "{}",
    "GITHUB_TOKEN": "{}",
    "HTTPS_PROXY": "http://me:{}@127.0.0.1:9",
    "PIP_INDEX_URL": "https://me:{}@packages.invalid/simple",
}
ARGUMENTS = {
    "an argument": "--token={}",
    "a URL with a password, in a value": "data.root=https://me:{}@images.invalid/data",
}


# SLURM's clients, as far as `pipeline submit` asks them: what they are given is kept
CLIENT = """#!/bin/sh
echo "$0 $*" >> slurm.log
case "$0 $1" in */sbatch\\ --parsable) echo 17 ;; esac
"""
CLIENTS = ("sbatch", "scontrol", "squeue", "scancel")


class Listening(Service):
    """Keeps all that it is sent, but for the header that the key is for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    def meets(self, answer: Any, content: bytes) -> bool:
        headers = "".join(f"{name}: {value}\n" for name, value in answer.headers.items() if name.lower() != "authorization")
        self.heard += [answer.path.encode(), headers.encode(), content]
        return False


def plant(folder: Path) -> tuple[list[Secret], dict[str, str], list[str]]:
    """The secrets; the environment, and the arguments, that hold some of them; the others are below `folder`."""
    places = [*VARIABLES, *ARGUMENTS, "a signed URL, in a configuration file", "~/.netrc", ".env", "the git remote"]
    found = {where: Secret(where, secrets.token_hex(20)) for where in places}
    signed, netrc, dotenv, remote = (found[where].value for where in places[-4:])
    (folder / "home").mkdir(parents=True)
    (folder / "home/.netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {netrc}\n")
    (folder / ".env").write_text(f"DATABASE_PASSWORD={dotenv}\n")
    (folder / "signed.yaml").write_text(f"train:\n  init: https://images.invalid/w.pth?X-Amz-Signature={signed}\n")
    for words in (["init"], ["remote", "add", "origin", f"https://{remote}@github.invalid/me/it.git"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    commit = ["-c", "user.name=me", "-c", "user.email=me@localhost", "commit", "--allow-empty", "-m", "begin"]
    subprocess.run(["git", *commit], cwd=folder, check=True, capture_output=True)
    (folder / "bin").mkdir()
    for client in CLIENTS:
        (folder / "bin" / client).write_text(CLIENT)
        (folder / "bin" / client).chmod(0o755)
    environment = {name: form.format(found[name].value) for name, form in VARIABLES.items()}
    environment |= {"HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return list(found.values()), environment, [form.format(found[where].value) for where, form in ARGUMENTS.items()]


def lives(folder: Path, environment: Mapping[str, str], arguments: Sequence[str]) -> Iterator[tuple[str, str, Sequence[int], bytes]]:
    """Each thing that is done, how it should end and how it did, and what it printed and sent."""

    def go(what: str, code: int, *words: str, add: Mapping[str, str] | None = None, **how: Any) -> tuple[str, str, Sequence[int], bytes]:
        for before in folder.glob("output*.txt"):
            before.unlink()
        ended = launch(folder, words, environment={**environment, **(add or {})}, **how)
        settled(folder)
        printed = b"".join(path.read_bytes() for path in folder.glob("output*.txt"))
        return what, str(code), ended.codes, printed

    offline = {"WANDB_MODE": "offline"}
    yield go("offline, 1 process", 0, "run", *WORDS, "--json", add=offline)
    yield go("offline, 2 processes", 0, "run", *WORDS, "run.name=two", "train.seed=1", add=offline, processes=2)
    with Listening() as service:
        online = {name: value for name, value in service.environment.items() if name != "WANDB_API_KEY"}
        yield go("online", 0, "run", *WORDS, "run.name=online", "train.seed=2", add=online)
        yield go("interrupted", 75, "train", *WORDS, "run.name=cut", "train.seed=3", add=online, stop_at=10)
        yield go("gone on with", 0, "train", *WORDS, "run.name=cut", "train.seed=3", add=online)
        yield go("failing", 1, "train", *WORDS, "run.name=failing", "train.seed=4", add=online, before=fails)
        yield go("published by W&B", 0, "publish", "online", "wandb:me/models/tiny", add=online)
        yield go("failing, 2 processes", 1, "train", *WORDS, "run.name=torn", "train.seed=5", add=online, processes=2, before=fails)
        heard = b"\n".join(service.heard)
        assert b"wandb-history" in heard, "nothing was sent"
    yield "what the service was sent", "0", [0], heard
    with Hub() as hub:
        yield go("published by the Hub", 0, "publish", "online", "hub:me/tiny", add={"HF_ENDPOINT": hub.address})
        yield "what the Hub was sent", "0", [0], b"\n".join(hub.heard)
        assert hub.repositories["me/tiny"].commits[1:], "nothing was sent"
    for command in ("status", "config"):
        yield go(command, 0, command, *WORDS)
    job = [*WORDS, "run.name=job", "--array", "seeds=0-1", "--prepare-partition", "cpu"]
    yield go("submit --dry-run", 0, "submit", *job, "--dry-run")
    yield go("submit", 0, "submit", *job)
    yield go("doctor", 0, "doctor", *WORDS, "--json", add=offline)
    yield go("report", 0, "report", "runs/tiny")
    yield go("compare", 0, "compare", "runs/tiny", "runs/two")
    yield go("runs", 0, "runs", "--json")
    yield "what the board gives out", "0", [0], board(folder, environment)
    for argument in arguments:
        yield go(f"refused: {argument.partition('=')[0]}", 2, "run", *WORDS, argument)
    yield go("refused: signed.yaml", 2, "run", "signed.yaml", *WORDS)


def board(folder: Path, environment: Mapping[str, str]) -> bytes:
    """All that a browser may ask it for, and what it prints."""
    port = free_port()
    output = folder / "output.txt"
    output.unlink()
    (process,) = begin(folder, ["board", "--port", str(port)], environment=environment)
    until(lambda: "http://" in output.read_text() if output.exists() else False, 60, lambda: "no board")

    def given(path: str) -> bytes:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read()

    runs = given("/api/runs")
    names = [run["name"] for run in json.loads(runs)["runs"]]
    paths = ["/", "/page.js", *(path for name in names for path in _of_a_run(quote(name, safe="")))]
    found = b"\n".join([runs, *map(given, paths)])
    assert b"train.lr" in found, "no run is shown"
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    process.join()
    return found + output.read_bytes()


def _of_a_run(name: str) -> list[str]:
    return [f"/api/curves?run={name}&x=step", f"/files/{name}/metrics.jsonl", f"/files/{name}/report/index.html"]


@contextlib.contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Those of all processes of this machine that were seen meanwhile."""
    seen: set[bytes] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(place.read_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()


def fails(rank: int) -> None:
    """With the values of this process's environment in its message, when the first step is told."""
    from pipeline.stages import train

    def update(*_: Any, **__: Any) -> bool:
        raise RuntimeError(f"rank {rank}: no answer from {os.environ['HTTPS_PROXY']} to {os.environ['HF_TOKEN']}")

    train.update = update  # type: ignore[attr-defined]


def campaign() -> Iterator[tuple[Secret, Sequence[str], int]]:
    """For each secret the places where it was found, of how many that were searched."""
    with tempfile.TemporaryDirectory(prefix="secrets-") as name:
        folder = Path(name) / "checkout"
        planted, environment, arguments = plant(folder)
        searched: dict[str, bytes] = {}
        with command_lines() as started:
            for what, expected, codes, printed in lives(folder, environment, arguments):
                assert {str(code) for code in codes} == {expected}, f"{what}: {codes}\n{printed.decode(errors='replace')[-2000:]}"
                searched[f"printed, {what}"] = printed
        searched["command lines"] = b"\n".join(started)
        assert b"wandb" in searched["command lines"], "no process was seen"
        assert "sbatch --parsable" in (folder / "slurm.log").read_text(), "nothing was submitted"
        ours = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        searched |= {str(path.relative_to(folder)): path.read_bytes() for path in ours}
        for each in PLANTED:
            assert any(secret.is_in(searched[each]) for secret in planted), f"{each} would not be found"
            del searched[each]
        for secret in planted:
            yield secret, [place for place, content in searched.items() if secret.is_in(content)], len(searched)


def main() -> int:
    rows: list[Row] = []
    for secret, places, count in campaign():
        failures = [f"{secret.where}: in {place}" for place in places]
        rows.append({"secret in": secret.where, "files, outputs and requests searched": count, "hits": len(places), "failures": failures})
    return report("secrets", rows, secrets=len(rows))


if __name__ == "__main__":
    sys.exit(main())
