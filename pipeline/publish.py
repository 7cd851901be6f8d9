"""An export where others find it: a repository of the Hub, or a registry or project of W&B.

Only the files that the manifest of the export lists are sent, after each was compared with its sha256.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.runtime import checksums, files, hub, manifests
from pipeline.runtime.console import say, working
from pipeline.runtime.manifests import Manifest
from pipeline.runtime.trackers.wandb import registry
from pipeline.wording import nearest


def publish(folder: Path, target: str, *, dry_run: bool) -> None:
    """Send the export in `folder`, or of the run in it, to `target`, as hub:owner/name; or only say what would be sent.

    Raises:
        ConfigError: there is no export, the target is none, or there is no key for it, or one that is refused.
        DataError: the export is damaged.
        PipelineError: the service failed, or is not to be reached; what was sent is not sent again.
    """
    kind, place = _target(target)
    run = folder if (folder / "export").is_dir() else None
    export = (folder / "export" if run else folder).resolve()
    manifest = _whole(export)
    where = kind.where(place)
    say(f"publish: {folder}, {sum(listed['size'] for listed in manifest.outputs.values()):,} bytes, as its manifest says")
    sizes = {name: f"{listed['size']:,}" for name, listed in manifest.outputs.items()}
    wide = max(map(len, sizes)), max(map(len, sizes.values()))
    for name, size in sizes.items():
        say(f"  {size:>{wide[1]}}  {name:{wide[0]}}  to {where}/{name}")
    if dry_run:
        say("publish: nothing was sent; without --dry-run it is")
    else:
        with working("publish"):
            came = kind.send(place, export, manifest, run)
        say(f"publish: {came}")


@dataclass(frozen=True)
class _Kind:
    form: str  # of what comes after the colon
    pattern: str
    where: Callable[[str], str]  # the address of such a place
    send: Callable[[str, Path, Manifest, Path | None], str]  # place, export, its manifest, its run: what came of it


def _target(target: str) -> tuple[_Kind, str]:
    name, _, place = target.partition(":")
    if name not in TARGETS:
        raise ConfigError(f"{target!r} is no target{nearest(name, TARGETS)}; write {' or '.join(_forms())}")
    if not re.fullmatch(TARGETS[name].pattern, place):
        raise ConfigError(f"{target!r} names no place; write {name}:{TARGETS[name].form}")
    return TARGETS[name], place


def _forms() -> list[str]:
    return [f"{name}:{kind.form}" for name, kind in TARGETS.items()]


def _whole(folder: Path) -> Manifest:
    """The manifest of the export in `folder`, if all its files are as that says."""
    manifest, broken = manifests.read(folder)
    if manifest is None and not broken and (folder / "model.onnx").exists():
        broken = f"{files.MANIFEST} is missing"
    if not broken and (manifest is None or manifest.stage != "export"):
        raise ConfigError(f"no export in {folder}; give the folder of a finished run or of its export")
    if manifest is not None and not broken:
        outside = [name for name in manifest.outputs if not (folder / name).resolve().is_relative_to(folder)]
        by_content = {name: {"size": listed["size"], "sha256": listed["sha256"]} for name, listed in manifest.outputs.items()}
        broken = f"{outside[0]} is not a file of it" if outside else files.damage(folder, by_content)
        broken = broken or checksums.damage(folder, [name for name in by_content if name != checksums.NAME])
    if manifest is None or broken:
        raise DataError(f"the export in {folder} is damaged: {broken}; nothing was sent; `pipeline export`, as it was made, makes it again")
    return manifest


_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
TARGETS = {
    "hub": _Kind("owner/name", rf"(?!.*(--|\.\.)){_NAME}/{_NAME}", hub.address, hub.send),
    "wandb": _Kind("entity/project/name", rf"{_NAME}/{_NAME}/{_NAME}", registry.address, registry.send),
}
