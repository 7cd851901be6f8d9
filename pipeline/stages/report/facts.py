"""What the page is made from: the files of three artifacts, and nothing else, so that it can be made again."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pipeline.runtime import files, journal, manifests
from pipeline.runtime.manifests import DIFF, Manifest
from pipeline.stages.artifacts import PreparedData, TrainedModel

PACKAGES = ("pipeline", "python", *manifests.PACKAGES)


@dataclass(frozen=True)
class Facts:
    place: Path  # of the evaluation
    data: PreparedData
    trained: TrainedModel
    manifests: Mapping[str, Manifest]  # by stage; without that of an evaluation that failed its gate
    defaults: Mapping[str, Mapping[str, Any]]  # section -> key -> value, as manifests have them
    measured: Mapping[str, Any]
    kept: dict[str, NDArray[Any]]  # predictions.safetensors
    lines: list[dict[str, Any]]  # of the journal
    timings: list[dict[str, Any]]
    timing: Mapping[str, Any]  # of the training as a whole

    @classmethod
    def of(
        cls, place: Path, data: PreparedData, trained: TrainedModel, manifests: Mapping[str, Manifest], defaults: Mapping[str, Any]
    ) -> "Facts":
        return cls(
            place,
            data,
            trained,
            manifests,
            defaults,
            measured=json.loads((place / "metrics.json").read_bytes()),
            kept=load_file(place / "predictions.safetensors"),
            lines=journal.read(trained.dir / "metrics.jsonl"),
            timings=journal.read(trained.dir / "timings.jsonl"),
            timing=files.read_json(trained.dir / "timing.json") or {},
        )

    @property
    def source(self) -> str:
        """The name of the data."""
        written = self.manifests["prepare"].reasons["data.source"]
        return str(written["name"] if isinstance(written, dict) else written)

    @property
    def test(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.measured["test"]
        return found

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.asarray(self.kept["test.labels"] == self.kept["test.predicted"])

    @property
    def restarts(self) -> list[int]:
        """The steps that were gone on from."""
        return [line["step"] for line in self.timings if "start" in line and line["step"] > 0]

    def environment(self, stage: str) -> Mapping[str, Any]:
        return self.manifests[stage].environment if stage in self.manifests else {}

    def hardware(self) -> str:
        """What trained it."""
        made = self.environment("train")
        terms, processes = made.get("terms", {}), made.get("world_size", 1)
        device = terms.get("device", made.get("device", "")) if made.get("device") == "cuda" else made.get("cpu") or made.get("device", "")
        threads = [f"{terms['threads']} {'thread' if terms['threads'] == 1 else 'threads each'}"] if "threads" in terms else []
        count = "1 process" if processes == 1 else f"{processes} processes ({made.get('strategy', '')})"
        return ", ".join(filter(None, [device, count, *threads]))

    def parameters(self) -> int:
        """Numbers in the weights; running statistics, which are not learnt, do not count."""
        from safetensors import safe_open

        with safe_open(self.trained.dir / "weights.safetensors", "np") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        kept = ("running_mean", "running_var", "num_batches_tracked")
        return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(kept))


@dataclass(frozen=True)
class Setting:
    key: str
    value: str
    default: str
    departs: bool


def settings(facts: Facts) -> list[Setting]:
    """What the artifacts were made from, key by key, beside the defaults; `data.root` and `run` are not, since they change nothing."""
    made = {key: value for manifest in facts.manifests.values() for key, value in manifest.reasons.items()}
    keys = {f"{section}.{key}": default for section, defaults in facts.defaults.items() for key, default in defaults.items()}
    return [Setting(key, written(made[key]), written(default), made[key] != default) for key, default in keys.items() if key in made]


def written(value: Any) -> str:
    """As an override has it; of a choice the name comes first."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict) and "name" in value:
        value = {"name": value["name"], **dict(sorted(value.items()))}
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).removesuffix("...\n").strip()


@dataclass(frozen=True)
class Stage:
    """Where an artifact comes from."""

    name: str
    fingerprint: str
    seconds: float | None
    host: str
    commit: str
    dirty: bool
    diff: str
    command: str
    packages: dict[str, str]


def stages(facts: Facts) -> list[Stage]:
    places = {"prepare": facts.data.dir, "train": facts.trained.dir, "evaluate": facts.place}
    found = []
    for name, place in places.items():
        made, manifest = facts.environment(name), facts.manifests.get(name)
        diff = (place / DIFF).read_text() if (place / DIFF).is_file() else ""
        packages = {package: str(made[package]) for package in PACKAGES if package in made}
        commit, dirty = made.get("commit", ""), made.get("dirty", False)
        seconds = manifest.seconds if manifest else None
        found.append(Stage(name, place.name, seconds, made.get("host", ""), commit, dirty, diff, made.get("command", ""), packages))
    return found
