"""A finished run in numbers, for scripts, and in words, for the person who waited."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.plan import Plan
from pipeline.runtime import files
from pipeline.runtime.manifests import Manifest


def summarise(plan: Plan, manifests: Mapping[str, Manifest], folder: Path) -> dict[str, Any]:
    """What `summary.json` holds."""
    data, trained, report, exported = plan.data, plan.trained, plan.report, plan.exported
    timing = files.read_json(trained.dir / "timing.json") or {}
    made = manifests["train"].environment
    validation = report.validation or {}
    return {
        "name": plan.config.run.name,
        "test_accuracy": report.test["accuracy"],
        "test_loss": report.test["loss"],
        "validation_accuracy": validation.get("accuracy"),
        "validation_loss": validation.get("loss"),
        "counts": data.counts,
        "steps": trained.steps,
        "images": trained.images,
        "selected": trained.selected,
        "seconds": {name: manifest.seconds for name, manifest in manifests.items()},
        "training_seconds": timing.get("seconds"),
        "images_per_second": timing.get("images_per_second"),
        "world_size": made.get("world_size"),
        "strategy": made.get("strategy"),
        "device": made.get("device"),
        "precision": trained.precision,
        "onnx_agreement": exported.agreement,
        "notes": data.notes,
        "fingerprints": {name: artifact.dir.name for name, artifact in _artifacts(plan).items()},
        "paths": {
            "run": str(folder.absolute()),
            **{name: str(artifact.dir) for name, artifact in _artifacts(plan).items()},
            "model": str(exported.dir / "model.onnx"),
            "report": str(report.dir / "report" / "index.html"),
            "metrics": str(trained.dir / "metrics.jsonl"),
        },
    }


def _artifacts(plan: Plan) -> dict[str, Any]:
    return {"prepare": plan.data, "train": plan.trained, "evaluate": plan.report, "export": plan.exported}


def closing_words(config: Config, until: str, folder: Path, typed: Sequence[str]) -> str:
    """Where things are, and what to type next; `typed` is the program and the arguments of this run."""
    here = folder.absolute()
    here = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    places = {"prepare": {"samples": "prepare/samples.png"}, "train": {"weights": "train/weights.safetensors", "metrics": "metrics.jsonl"}}
    places["evaluate"] = {"report": "report/index.html", "metrics": "metrics.jsonl"}
    places["lr-find"] = {"picture": "lr_find/lr_find.png"}
    places["export"] = {"model": "export/model.onnx", **places["evaluate"]}
    lines = [f"  {what:8} {here / path}" for what, path in places[until].items()]
    program, *words = typed
    program = program if Path(program).name == "pipeline" and not Path(program).is_absolute() else "pipeline"
    if until == "export":
        lines.append(f"next: {program} predict {here} IMAGE.png")
        words = [word for word in words if not word.startswith(("train.lr=", "run.name="))]
        lines.append(f"  or: {shlex.join([program, 'run', *words, f'train.lr={config.train.lr / 2:g}', f'run.name={config.run.name}-2'])}")
    else:
        found = files.read_json(folder / "lr_find" / "lr_find.json") if until == "lr-find" else None
        words += [f"train.lr={found['suggestion']:.2g}"] if isinstance(found, dict) else []
        lines.append(f"next: {shlex.join([program, 'run', *words])}")
    return "\n".join(lines)
