"""What a stage makes, and the record of its making.

artifacts/<stage>/<fingerprint>/                what the stage wrote, there only when whole, and
artifacts/<stage>/<fingerprint>/manifest.json   what that is, and what it was made from
artifacts/<stage>/<fingerprint>/code.diff       how the code differed from its commit, if it did; recorded only
artifacts/<stage>/<fingerprint>.partial-<n>/    what is being made, or was begun
"""

import dataclasses
import importlib
import platform
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import __version__
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.runtime import claims, files, fingerprint
from pipeline.runtime.origin import origin

DIFF = "code.diff"
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "matplotlib", "numpy", "pillow", "pyarrow", "safetensors")


class Artifact(BaseModel, ABC):
    """What a stage makes: facts, and files in `dir`. `digest` names the content, not the making."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: Path
    digest: str = ""

    @abstractmethod
    def files(self) -> list[str]:
        """The files that make up this artifact, relative to `dir`."""

    def reasons(self) -> dict[str, Any]:
        return {self.dir.parent.name: self.digest}  # by the name of the stage


A = TypeVar("A", bound=Artifact)


class Input(Protocol):
    """What a stage is given: a section of the configuration, an artifact, a source of raw data."""

    def reasons(self) -> dict[str, Any]: ...


class Manifest(BaseModel):
    """The record of one finished stage."""

    model_config = ConfigDict(frozen=True)

    stage: str
    reasons: dict[str, Any]  # all that the fingerprint is made of, by name
    outputs: files.Outputs
    result: dict[str, Any]  # the artifact's facts
    code: dict[str, str]  # module -> digest; recorded so that drift can be told
    sources: str = ""  # digest of `code` and its files: where that is the same there is no drift, and none is looked for
    environment: dict[str, Any]  # recorded only
    seconds: float

    @property
    def digest(self) -> str:
        """Equal content keeps everything after it fresh, however it came about."""
        content = {path: {"sha256": listed["sha256"], "size": listed["size"]} for path, listed in self.outputs.items()}
        return fingerprint.of_value([content, self.result])


@dataclass(frozen=True)
class Stage(Generic[A]):
    """The function `name` of the module `pipeline.stages.<name>`: from inputs and a workspace to an artifact.

    It is imported only when it is to run. Raise `version` when the meaning of its output changes.
    `on` says where it runs: "first" on the main process before the others are met, "main" while
    they wait, "all" on every process.
    """

    name: str
    makes: type[A]
    version: int
    on: Literal["first", "main", "all"]

    @property
    def module(self) -> str:
        return f"{fingerprint.PACKAGE}.stages.{self.name}"

    def function(self) -> Callable[..., A]:
        function: Callable[..., A] = getattr(importlib.import_module(self.module), self.name)
        return function


@dataclass(frozen=True)
class Look:
    """Whether a stage need run, and why."""

    place: Path
    reasons: dict[str, Any]
    manifest: Manifest | None
    why: str
    work: Path | None = None  # where it is made, by the one that is to make it


def whereabouts(config: Config, stage: Stage[A], *inputs: Input) -> tuple[Path, dict[str, Any]]:
    """Where `stage` of `inputs` is, or would be; and what it is made of."""
    reasons: dict[str, Any] = {"version": stage.version}
    for value in inputs:
        reasons |= value.reasons()
    return config.run.artifacts.absolute() / stage.name / fingerprint.of_value([stage.name, reasons])[:12], reasons


def look(config: Config, stage: Stage[A], *inputs: Input) -> Look:
    """Whether `stage` of `inputs` has been made and is whole; if not, what has changed."""
    place, reasons = whereabouts(config, stage, *inputs)
    manifest, broken = read(place)
    if manifest is None and not broken:
        before, _ = read(config.run.folder / config.run.name / stage.name)  # what this run last linked to
        return Look(place, reasons, None, _why(place, before, reasons))
    if manifest is None or (broken := files.damage(place, manifest.outputs)):
        return Look(place, reasons, None, f"damaged: {broken}; to be made again")
    drift = _drift(stage, manifest)
    note = f" (code changed since: {', '.join(drift)}; --force {stage.name} makes it again)" if drift else ""
    return Look(place, reasons, manifest, f"fresh{note}")


def _drift(stage: Stage[A], manifest: Manifest) -> list[str]:
    """The modules that have changed since; to parse them all takes a third of a second, to read them a thousandth."""
    if manifest.sources == fingerprint.of_sources(manifest.code):
        return []
    return [module for module, digest in fingerprint.of_modules(stage.module).items() if manifest.code.get(module) != digest]


def read(place: Path) -> tuple[Manifest | None, str]:
    """The manifest in `place`, or None; and what is wrong with it: nothing, if the stage never finished there."""
    values, broken = files.read_manifest(place)
    try:
        return (None, broken) if values is None else (Manifest.model_validate(values), "")
    except ValidationError:
        return None, f"{files.MANIFEST} is of another version"


def artifact(stage: Stage[A], place: Path, manifest: Manifest) -> A:
    """What `manifest` says that lies in `place`.

    Raises:
        DataError: it is not what the stage makes.
    """
    try:
        made = stage.makes.model_validate({**manifest.result, "dir": place, "digest": manifest.digest})
        lacking = next((name for name in made.files() if name not in manifest.outputs), "")
    except ValidationError as error:
        lacking = ".".join(map(str, error.errors()[0]["loc"])) or "what it is to say"
    if lacking:
        raise DataError(f"{place / files.MANIFEST} does not have {lacking} as {stage.name} writes it; delete its folder and run again")
    return made


def commit(stage: Stage[A], found: Look, result: A, seconds: float, parallelism: Mapping[str, Any], claim: claims.Claim) -> Look:
    """Hash and sync what the stage wrote, say so in its manifest, and give it its place."""
    assert found.work is not None
    code = fingerprint.of_modules(stage.module)
    if diff := origin().diff:
        files.write_whole(found.work / DIFF, diff)
    manifest = Manifest(
        stage=stage.name,
        reasons=found.reasons,
        outputs=files.seal(found.work, result.files()),
        result=result.model_dump(mode="json", exclude={"dir", "digest"}),
        code=code,
        sources=fingerprint.of_sources(code),
        environment={**environment(), **parallelism},
        seconds=round(seconds, 3),
    )
    files.write_manifest(found.work, manifest.model_dump(mode="json"))
    claim.commit(found.place)
    return dataclasses.replace(found, manifest=read(found.place)[0])  # as all later readers see it


def begun_before(place: Path) -> str:
    """What there is of an artifact that is not finished; empty if it was never begun."""
    partial = claims.newest(place, "partial") or place
    if not partial.is_dir():
        return ""
    kept = any(partial.glob("checkpoints/step-*"))
    return "goes on where it stopped" if kept else "begun before, but nothing was kept; starts again"


def environment() -> dict[str, Any]:
    """What runs here, and on what: versions, host, and what `origin` knows."""
    installed = {name for name in PACKAGES if find_spec({"pillow": "PIL"}.get(name, name))}
    versions = {name: version(name) for name in sorted(installed)}
    return {"pipeline": __version__, "python": platform.python_version(), **versions, "host": socket.gethostname(), **origin().facts}


def _why(place: Path, before: Manifest | None, reasons: Mapping[str, Any]) -> str:
    if begun := begun_before(place):
        return begun
    if before is None:
        return "first time"
    changed = [k for k in {**before.reasons, **reasons} if before.reasons.get(k) != reasons.get(k)]
    return f"changed: {', '.join(changed)}" if changed else "its files are gone"
