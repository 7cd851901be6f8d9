"""Weights to begin with, from a W&B artifact."""

import os
import re
from pathlib import Path

from filelock import FileLock

from pipeline.errors import ConfigError
from pipeline.runtime import files


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
