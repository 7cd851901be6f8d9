"""Services that mirror the record; a run goes on without them. The only user of wandb.

A tracker lives in a process aside (`aside`), from when training begins, or else the first thing there is to tell.
"""

import netrc
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.runtime import files
from pipeline.runtime.console import say


class Tracker(Protocol):
    """What a service is told; names of files hold until it is closed. A failure in here never reaches the training."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def results(self, values: Mapping[str, float]) -> None: ...

    def picture(self, name: str, path: str) -> None: ...

    def artifact(self, name: str, kind: str, paths: Sequence[str], facts: Mapping[str, Any]) -> None: ...

    def close(self, exit_code: int) -> None: ...


def wandb(
    config: Config,
    folder: Path,
    training: Path,
    *,
    project: str = "pipeline",
    mode: Literal["auto", "online", "offline"] = "auto",
) -> Tracker:
    """Weights & Biases: one run for one training, over all its restarts; offline when no key is configured."""
    return _WandB(config, folder, training, project, mode)


class _WandB:
    def __init__(self, config: Config, folder: Path, training: Path, project: str, mode: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # what there is to say is said below
        import wandb

        self._wandb = wandb
        run_id = _run_id(training / "wandb.json")
        if (mark := training / "wandb.step").exists():
            files.write_whole(mark, mark.read_bytes())  # a copy: an earlier life may have it open yet
        self._mark = os.open(mark, os.O_RDWR | os.O_CREAT, 0o644)
        self._told = self._last = int(os.pread(self._mark, 20, 0) or -1)  # the last step told before a restart; and of all
        self._names: set[str] = set()  # what was told of the latter
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=10,
            finish_timeout=30,
            x_graphql_retry_max=1,
            program=sys.argv[0],
            x_stats_pid=os.getppid(),  # of the process that trains
        )
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")

        def begin(chosen: Any) -> Any:
            return wandb.init(
                project=project,
                name=config.run.name,
                id=run_id,
                resume="allow",
                mode=chosen,
                dir=folder,
                config=config.model_dump(mode="json"),
                settings=settings,
            )

        try:
            self._run = begin(mode)
        except wandb.errors.Error as error:
            say(f"wandb: {str(error).splitlines()[0]}; going on offline")
            mode = "offline"
            wandb.teardown()  # its service still holds the run's id
            self._run = begin("offline")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        say(f"wandb: {mode}, run {run_id} in {folder / 'wandb'}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step < self._last or (step == self._last and not self._names.isdisjoint(values)):  # training went back to a checkpoint
            self._told = self._last
        if step > self._told:  # what a restart repeats is there already
            self._names = {*values} if step > self._last else {*self._names, *values}
            self._last = step
            self._run.log({"step": step, **values})
            os.pwrite(self._mark, b"%020d" % step, 0)

    def results(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def picture(self, name: str, path: str) -> None:
        self._run.log({name: self._wandb.Image(path)})

    def artifact(self, name: str, kind: str, paths: Sequence[str], facts: Mapping[str, Any]) -> None:
        made = self._wandb.Artifact(name, type=kind, metadata=dict(facts))
        for path in paths:
            made.add_file(path)
        self._run.log_artifact(made, aliases=["best", "latest"])

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)
        self._wandb.teardown(exit_code)  # its service writes the last of its file when it is told to end, and not before
        os.close(self._mark)


def _has_key() -> bool:
    """Whether a key is in the environment or in ~/.netrc, where `wandb login` puts it; nothing is asked of anyone."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "WANDB_API_KEY" in os.environ or netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(notes: Path) -> str:
    """Kept beside the training: the same for each restart, another when it is made anew."""
    known = files.read_json(notes)
    if not isinstance(known, dict):
        known = {"id": secrets.token_hex(4)}
        files.write_json(notes, known)
    return str(known["id"])


def fetch(reference: str, folder: Path) -> Path:
    """The files of the W&B artifact `entity/project/name:alias`, in a folder below `folder`.

    It is downloaded once, whatever becomes of the alias. Nobody is asked for a key.

    Raises:
        ConfigError: there is none, its files are not those of its digests, or the service is not to be reached.
    """
    if not re.fullmatch(r"([^/:.][^/:]*/){2}[^/:.][^/:]*:[^/:]+", reference):
        raise ConfigError(f"train.init: wandb:{reference} names no artifact; write wandb:entity/project/name:alias")
    place = folder / "wandb" / reference
    partial = place.with_name(f"{place.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            files.remove(partial)
            try:
                _download(reference, partial / "files", cache=partial / "cache")
                files.commit_folder(partial / "files", place, {"wandb": reference})
            finally:
                files.remove(partial)
    return place


def _download(reference: str, folder: Path, *, cache: Path) -> None:
    """Download an artifact with a client of its own, which is silent and gives up within 25 seconds on a service that does not answer.

    It gets a cache of its own too: what lies in the usual one is taken for whole if its size is right, and to skip it
    (`skip_cache`) makes later downloads of the process mix their files up (wandb 0.31).
    """
    import wandb

    environment = dict(os.environ)
    os.environ["WANDB_CACHE_DIR"] = str(cache)  # there is no setting for it
    try:
        wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=1, x_graphql_retry_wait_max_seconds=1, x_graphql_timeout_seconds=10))
        artifact = wandb.Api(timeout=20).artifact(reference)
        artifact.download(root=str(folder))
        artifact.verify(root=str(folder))  # the download itself compares nothing
    except Exception as error:  # some of the client's own are no errors of wandb.errors
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ConfigError(f"train.init: wandb did not give {reference}: {reason}; try `wandb artifact get {reference}`") from None
    finally:
        wandb.teardown()  # the settings are for this alone
        del os.environ["WANDB_CACHE_DIR"]
        os.environ |= environment


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": wandb}
