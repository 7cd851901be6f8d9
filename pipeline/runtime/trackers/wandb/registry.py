"""An export as an artifact of W&B, in a project, or linked to from a registry (a project named wandb-registry-...)."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Config, Spec, typed
from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime import services
from pipeline.runtime.manifests import Manifest
from pipeline.runtime.trackers.wandb import SETTINGS, model_name, service

PACE = 50_000  # bytes a second: who is slower is given up
AT_LEAST = 120  # seconds, for all that is asked besides
REGISTRY = "wandb-registry-"
REFUSED = re.compile(r"\b(401|403|Unauthorized|Forbidden|permission denied|not logged in|invalid credentials|WANDB_API_KEY invalid)\b")
UNREACHED = re.compile(r"dial tcp.*?: (?:connect: )?([a-z/ ]+?)(?: while|$)")  # as Go says it
QUIET = {
    **SETTINGS,
    "finish_timeout": 10,
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,  # the host, the user, what was typed
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_file_transfer_retry_max": 2,
    "x_graphql_retry_wait_max_seconds": 1,
    "x_graphql_timeout_seconds": 10,
}


def address(place: str) -> str:
    return f"wandb:{place}"


def send(place: str, export: Path, manifest: Manifest, run: Path | None) -> str:
    """Have the artifact `place`, entity/project/name, hold the files of `export` as its latest version; what came of it.

    For a registry, it is made in the project of the run, or in `pipeline`, and linked to. Its origin is the model that the tracker
    told W&B of, if it is the one that this export was made from. If the latest is as it should be, nothing is sent.

    Raises:
        ConfigError: there is no key, or none that may write there.
        PipelineError: the service failed, or is not to be reached.
    """
    _, service_address, has_key = service(Spec(name="wandb", options={"mode": "online"}))
    if not has_key:
        raise ConfigError(f"there is no key for W&B at {service_address}; set WANDB_API_KEY, or type `wandb login` once")
    size = sum(listed["size"] for listed in manifest.outputs.values())
    with services.within(AT_LEAST + size // PACE), _in_one_line(place, service_address), _alone() as folder:
        if _digest(f"{place}:latest") == manifest.digest:
            return f"nothing has changed in {address(place)}"
        version, origin = _sent(place, export, manifest, run, folder)
    return f"{address(place)}, {version}" + (f", made from {origin}" if origin else "")


def _sent(place: str, export: Path, manifest: Manifest, run: Path | None, folder: Path) -> tuple[str, str]:
    """The version that it has become, and the model that it was made from, if W&B knows it."""
    import wandb

    entity, project, name = place.split("/")
    config = typed([str(run / "config.yaml")]) if run and (run / "config.yaml").is_file() else None
    linked = project.startswith(REGISTRY)
    known = {"fingerprint": export.name, "digest": manifest.digest, "seconds": manifest.seconds}
    card = (export / "README.md").read_text()
    made = wandb.Artifact(f"{name}-published" if linked else name, type="model", description=card, metadata={**manifest.result, **known})
    for inside in manifest.outputs:
        made.add_file(str(export / inside), name=inside, skip_cache=True)  # a copy: what is sent says where on the disk it came from
    publishing = wandb.init(
        entity=None if linked else entity,
        project=_project(config) if linked else project,
        id=f"publish-{manifest.digest[:12]}",  # the same for another attempt
        name=f"publish {name}",
        job_type="publish",
        resume="allow",
        mode="online",
        dir=folder,
        settings=wandb.Settings(**QUIET),
    )
    origin = _origin(config, manifest, publishing)
    if origin is not None:
        publishing.use_artifact(origin)
    logged = publishing.log_artifact(made).wait()
    if linked:
        logged = publishing.link_artifact(logged, place)
    with contextlib.suppress(TimeoutError):  # the artifact is whole: what may be lost is how the run has ended
        publishing.finish()
    return str(logged.version), str(origin.qualified_name) if origin else ""


def _project(config: Config | None) -> str:
    """Of the run that the export is from."""
    options = {spec.name: spec.options for spec in config.run.trackers}.get("wandb", {}) if config else {}
    return os.environ.get("WANDB_PROJECT") or str(options.get("project", "pipeline"))


def _origin(config: Config | None, manifest: Manifest, publishing: Any) -> Any:
    """The model that the run `config` has told of, if this was exported from it."""
    import wandb

    if config is None:
        return None
    reference = f"{publishing.entity}/{_project(config)}/{model_name(config)}:best"
    if _digest(reference) != manifest.reasons.get("train"):
        return None
    return wandb.Api().artifact(reference)


def _digest(reference: str) -> str:
    """Ours, of the artifact that is named; empty if there is none."""
    import wandb

    api = wandb.Api(timeout=20)
    return str(api.artifact(reference).metadata.get("digest", "")) if api.artifact_exists(reference) else ""


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """A client of its own, which is silent, gives up soon, and leaves nothing: it works in the folder that is given."""
    import wandb

    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="publish-") as folder:
        os.environ |= {f"WANDB_{what}_DIR": folder for what in ("CACHE", "DATA", "CONFIG")}  # there are no settings for them
        os.environ["WANDB_SILENT"] = "true"
        try:
            wandb.setup(wandb.Settings(**QUIET))
            yield Path(folder)
        finally:
            wandb.teardown(1)
            os.environ.clear()
            os.environ |= environment


@contextlib.contextmanager
def _in_one_line(place: str, service_address: str) -> Iterator[None]:
    """What the client raises, of which some are no errors of wandb.errors, as one."""
    try:
        yield
    except (PipelineError, ConfigError):
        raise
    except Exception as error:
        reason = services.reason(error)
        if REFUSED.search(reason):
            advice = f"set WANDB_API_KEY to a key of {service_address} that may write there, or name another entity"
            raise ConfigError(f"{address(place)}: {reason}; {advice}") from None
        if unreached := UNREACHED.search(reason):
            advice = "see to the network, or to WANDB_BASE_URL; the same command goes on"
            raise PipelineError(f"cannot reach {service_address}: {unreached[1]}; {advice}") from None
        raise PipelineError(f"{address(place)}: {reason}; the same command goes on") from None
