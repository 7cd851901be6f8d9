"""What one process sees by itself."""

import hashlib
import json
import os
import platform
import shutil
import socket
import urllib.error
import urllib.request
from importlib.metadata import version
from typing import Any

from pipeline import __version__
from pipeline.config import Config, DataConfig, TrainConfig
from pipeline.data.datasets import RawData
from pipeline.doctor.findings import Finding
from pipeline.errors import ConfigError
from pipeline.plan import PREPARE, foreseen, prepared, status
from pipeline.runtime import fingerprint
from pipeline.runtime.claims import newest
from pipeline.runtime.launch import Launch
from pipeline.runtime.manifests import Look, Manifest, read, whereabouts
from pipeline.runtime.trackers.wandb import service

WEB = 5.0  # seconds for a web server to answer
PACKAGES = ("torch", "torchvision", "accelerate", "numpy")


def facts(config: Config, launch: Launch, threads: int, asked: str) -> dict[str, Any]:
    """What must fit together over all processes; plain data."""
    code = {
        str(path.relative_to(fingerprint.ROOT.parent)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(fingerprint.ROOT.rglob("*.py"))
    }
    settings = {f"{section}.{key}": _text(value) for section, keys in config.model_dump(mode="json").items() for key, value in keys.items()}
    return {
        "rank": launch.rank,
        "size": launch.size,
        "tasks": int(os.environ.get("SLURM_NTASKS", 1)),
        "host": socket.gethostname(),
        "code": code,
        "configuration": settings,
        "versions": {"python": platform.python_version(), "pipeline": __version__, **{name: version(name) for name in PACKAGES}},
        "digests": {"code": f"sha256 {fingerprint.of_value(code)[:12]}", "configuration": f"sha256 {fingerprint.of_value(settings)[:12]}"},
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": threads,
        "threads_asked": asked if launch.size == 1 else "",  # launchers set it by themselves
        "device_asked": config.run.device,
        "device": {},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def devices(config: Config) -> dict[str, Any]:
    """As `probe.devices`; to import torch takes a moment, or for ever where its files do not come."""
    from pipeline.runtime import probe

    return probe.devices(config.run)


def web(config: Config) -> list[Finding]:
    """What W&B would be told; of a key, whether there is one."""
    found = []
    for spec in (spec for spec in config.run.trackers if spec.name == "wandb"):
        mode, url, has_key = service(spec)
        key = "a key is there" if has_key else "no key"
        if mode != "online":
            found.append(Finding("W&B", f"{mode}, {key}{'; `wandb sync` sends it later' if mode == 'offline' else ''}"))
            continue
        if not has_key:
            found.append(Finding("W&B", "online", "no key is there", "`wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline"))
        if wrong := _unanswered(url):
            cure = "set HTTPS_PROXY, or WANDB_MODE=offline and `wandb sync` later"
            found.append(Finding("W&B", "online", f"{url} does not answer: {wrong}", cure))
        elif has_key:
            found.append(Finding("W&B", f"online, {url} answers, {key}"))
    return found or [Finding("W&B", "not asked for")]


def _unanswered(url: str) -> str:
    """Why; empty if a server answers, whatever it says."""
    try:
        with urllib.request.urlopen(url, timeout=WEB):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def data(config: Config) -> tuple[list[Finding], dict[str, Look | None]]:
    """Whether the images are there, prepared or raw; and how each stage stands.

    Raises:
        PipelineError: the source cannot be looked at.
    """
    try:
        stages = status(config)
    except ConfigError:  # in what training begins with, which `model` tells of
        stages = status(config.model_copy(update={"train": TrainConfig()}))
    look, name = stages["prepare"], config.data.source.name
    if look is not None and look.manifest is not None:
        return [_prepared(config, look.manifest)], stages
    if absent := RawData(config.data.source, config.data.root).source.absent:
        cure = "set data.root, or run `pipeline prepare` where they are or can be downloaded"
        return [Finding("data", name, absent, cure)], stages
    damaged = f" ({look.why})" if look is not None and look.why.startswith("damaged") else ""
    return [Finding("data", f"{name}, raw; to be prepared at the first start{damaged}")], stages


def glance(config: Config) -> list[Finding]:
    """Prepared data of which every byte could not be checked in time; nothing if there are none."""
    place, _ = whereabouts(config, PREPARE, config.data, RawData(config.data.source, config.data.root))
    manifest, _ = read(place)
    return [] if manifest is None else [_prepared(config, manifest, "; to check every byte takes longer, as it will at a start")]


def _prepared(config: Config, manifest: Manifest, note: str = "") -> Finding:
    if config.data.root != DataConfig().root and not config.data.root.is_dir():
        note += f"; {config.data.root} is not there, and not needed"
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.result["counts"].items())
    return Finding("data", f"{config.data.source.name}, prepared: {counts}{note}")


def model(config: Config) -> list[Finding]:
    """Whether it takes the images, and can begin as is asked.

    Raises:
        ConfigError: it does not, or cannot.
    """
    name = config.train.model.name
    if config.train.init.options.get("path", "").startswith("wandb:"):
        return [Finding("model", f"{name}; it begins with what W&B has, which is fetched by a run")]
    if foreseen(config):
        return [Finding("model", f"{name} takes the images, and can begin as is asked")]
    return [Finding("model", f"{name}; whether it takes the images is known when they are prepared")]


def room(config: Config, stages: dict[str, Look | None]) -> list[Finding]:
    """What checkpoints take, beside what is free where they go."""
    from pipeline.doctor.folders import existing

    look, place = stages.get("train"), existing(config.run.artifacts)
    if look is None:
        return [Finding("checkpoints", "their size is known when data are prepared")]
    if look.manifest is not None:
        return [Finding("checkpoints", "trained already")]
    from torch.amp.grad_scaler import GradScaler

    from pipeline.learning import models
    from pipeline.learning.state import TrainState
    from pipeline.learning.state import room as needed

    seen = prepared(config)
    model = models.build(config.train.model, seen.shape, len(seen.classes))
    weights = model.state_dict() if config.train.average else {}
    state = TrainState(model, (), GradScaler(enabled=False), [], average=weights)
    most = needed(state, newest(look.place, "partial") or look.place, config.run.keep)
    there = shutil.disk_usage(place).free
    value = f"take up to {most / 1e6:,.1f} MB of {there / 1e9:,.1f} GB free in {place}"
    if most > there:
        cure = "make room, lower run.keep, or choose another run.artifacts folder"
        return [Finding("checkpoints", wrong=f"take up to {most / 1e6:,.1f} MB, but {place} has {there / 1e6:,.1f} MB free", cure=cure)]
    return [Finding("checkpoints", value)]
