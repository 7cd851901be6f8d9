"""The Hugging Face Hub, where it is written to: an export is one commit of one repository. Nobody is asked for anything."""

import contextlib
import hashlib
import importlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime import services
from pipeline.runtime.console import show_progress
from pipeline.runtime.manifests import Manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SILENCE = 30.0  # seconds without a byte, of a service that was asked; the client asks again five times
PACE = 50_000  # bytes a second: who is slower is given up
AT_LEAST = 300  # seconds, for all that is asked besides
ADVICE = {
    401: "it does not know the token; make another, with the right to write, and set HF_TOKEN",
    403: "the token may not write there; give it that right, or name another owner",
    404: "there is no such owner, or it is hidden from the token",
    429: "it was asked too often; the same command goes on, later",
}


def address(place: str) -> str:
    return f"{_client().HfApi().endpoint}/{place}"


def send(place: str, export: Path, manifest: Manifest, run: Path | None) -> str:
    """Have the repository `place`, owner/name, hold the files of `export`; what came of it.

    One that is not there yet is made, and is private. Files that are there as they should be are not sent again, and if all
    are there is no new commit. All come at once, or none.

    Raises:
        ConfigError: there is no token, or none that may write there.
        PipelineError: the Hub failed, or is not to be reached.
    """
    del run  # the Hub knows nothing of runs
    hub = _client()
    size = sum(listed["size"] for listed in manifest.outputs.values())
    with services.within(AT_LEAST + size // PACE), _in_one_line(place), _silent():
        api = hub.HfApi(token=_token())
        hub.ModelCard.load(export / "README.md").validate()
        api.create_repo(place, private=True, exist_ok=True)
        before = api.model_info(place).sha
        additions = [hub.CommitOperationAdd(name, export / name) for name in manifest.outputs]
        with contextlib.closing(show_progress("publish", total=size, units="bytes")) as progress:
            for addition in additions:
                progress.doing(addition.path_in_repo)
                api.preupload_lfs_files(place, [addition], free_memory=False)
                progress.step(manifest.outputs[addition.path_in_repo]["size"])
        made = api.create_commit(place, additions, commit_message=f"Export {export.name}")
        others = _see_that_it_holds(api, place, export, manifest)
    also = f"; it also holds {', '.join(others)}" if others else ""
    return f"{'nothing has changed in ' if made.oid == before else ''}{address(place)}, commit {made.oid[:8]}{also}"


def _see_that_it_holds(api: "HfApi", place: str, export: Path, manifest: Manifest) -> list[str]:
    """Compare what the repository says of its files; those that are none of the export's."""
    known = {file.rfilename: file for file in api.model_info(place, files_metadata=True).siblings or ()}
    for name, listed in manifest.outputs.items():
        file = known.get(name)
        if file is None or (file.lfs.sha256 != listed["sha256"] if file.lfs else file.blob_id != _git_name(export / name)):
            raise PipelineError(f"{address(place)} does not hold {name} as it was sent; is it in its .gitignore?")
    return sorted(known.keys() - manifest.outputs.keys() - {".gitattributes"})


def _git_name(path: Path) -> str:
    """By which git knows a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _client() -> Any:
    """The client, which reads its environment when it is imported.

    It would send by Xet, whose own client waits as long as it likes; LFS is what each Hub understands.
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import huggingface_hub

    return huggingface_hub


def _token() -> str:
    if token := _client().get_token():
        return str(token)
    raise ConfigError("there is no token for the Hub; set HF_TOKEN to one that may write, or type `hf auth login` once")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Have the client wait for nobody longer than `SILENCE`, and say nothing: it waits for ever if it is not told to."""
    hub = _client()
    utils: Any = importlib.import_module(f"{hub.__name__}.utils")
    usual = hub.get_session()

    def impatient() -> Any:
        return type(usual)(event_hooks=usual.event_hooks, follow_redirects=True, timeout=SILENCE)

    hub.set_client_factory(impatient)
    utils.disable_progress_bars()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _in_one_line(place: str) -> Iterator[None]:
    """What the client raises, which is of many kinds, as one."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # it wraps those of an upload
        answer = getattr(cause, "response", None)
        status = getattr(answer, "status_code", None)
        text = getattr(cause, "server_message", None) or re.sub(r"\s*\((?:Request|Amzn Trace|Amz CF) ID.*?\)", "", str(cause))
        reason = services.reason(cause, text)
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):  # of httpx, or httpx2: each version of the client has its own
            where = f"cannot reach {_client().HfApi().endpoint}"
            raise PipelineError(f"{where}: {reason}; see to the network, or to HF_ENDPOINT; the same command goes on") from None
        if status is None:
            raise PipelineError(f"{address(place)}: {reason}; the same command goes on") from None
        kind = ConfigError if status in (401, 403, 404) else PipelineError
        advice = ADVICE.get(status, "the same command goes on")
        raise kind(f"{address(place)}: the Hub answers {status}: {reason}; {advice}") from None
