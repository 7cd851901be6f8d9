"""A finished run in numbers, for scripts, and in words, for the person who waited."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.learning.statistics import wilson
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


def called(program: str) -> str:
    """What to type for `program`, the name by which this process was started."""
    return program if Path(program).name == "pipeline" and not Path(program).is_absolute() else "pipeline"


def closing_words(config: Config, until: str, folder: Path, typed: Sequence[str], summary: Mapping[str, Any], made: Sequence[str]) -> str:
    """What came of it if that is a whole run, where things are, and what to type next.

    `typed` is the program and the arguments of this run, `made` the stages that were not found fresh.
    """
    here = folder.absolute()
    here = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    places = {"prepare": {"samples": "prepare/samples.png"}, "train": {"weights": "train/weights.safetensors", "metrics": "metrics.jsonl"}}
    places["evaluate"] = {"report": "report/index.html", "metrics": "metrics.jsonl"}
    places["lr-find"] = {"picture": "lr_find/lr_find.png"}
    places["export"] = {"model": "export/model.onnx", **places["evaluate"]}
    rows = {**(_figures(summary, made) if summary else {}), **{what: str(here / path) for what, path in places[until].items()}}
    rows |= _wandb(here) if until == "export" else {}
    lines = [*([_headline(summary)] if summary else []), *(f"  {what:11} {text}" for what, text in rows.items())]
    program, words = called(typed[0]), [*typed[1:]]
    if until == "export":
        lines.append(f"next: {shlex.join([program, 'predict', str(here), 'IMAGE.png'])}")
        words = [word for word in words if not word.startswith(("train.lr=", "run.name="))]
        lines.append(f"  or: {shlex.join([program, 'run', *words, f'train.lr={config.train.lr / 2:g}', f'run.name={config.run.name}-2'])}")
    else:
        found = files.read_json(folder / "lr_find" / "lr_find.json") if until == "lr-find" else None
        words += [f"train.lr={found['suggestion']:.2g}"] if isinstance(found, dict) else []
        lines.append(f"next: {shlex.join([program, 'run', *words])}")
    return "\n".join(lines)


def _headline(summary: Mapping[str, Any]) -> str:
    accuracy, images = summary["test_accuracy"], summary["counts"]["test"]
    low, high = wilson(round(accuracy * images), images)
    right = f"{round(accuracy * images):,} of {images:,}"
    return f"{summary['name']}: test accuracy {accuracy:.4f} (95 % {low:.4f} to {high:.4f}; {right})"


def _figures(summary: Mapping[str, Any], made: Sequence[str]) -> dict[str, str]:
    accuracy, loss, world_size = summary["validation_accuracy"], summary["validation_loss"], summary["world_size"]
    how = f"{world_size} process{'es' if world_size != 1 else ''} ({summary['strategy']}) on {summary['device']}"
    passed, speed = summary["training_seconds"], summary["images_per_second"]
    pace = "" if passed is None else f"{speed:,.0f} images/s, {passed:.1f} s; "
    seconds = [f"{name} {passed:.1f}" if name in made else f"{name} fresh" for name, passed in summary["seconds"].items()]
    return {
        "test loss": f"{summary['test_loss']:.4f}",
        **({} if accuracy is None else {"validation": f"{accuracy:.4f}, loss {loss:.4f}"}),
        "weights": f"of step {summary['selected']['step']:,} of {summary['steps']:,}, by {summary['selected']['by']}",
        "training": f"{pace}{how}",
        "seconds": ", ".join(seconds),
    }


def _wandb(folder: Path) -> dict[str, str]:
    """What W&B's client has left in the run folder; it may yet be to be sent, with what earlier lives have told."""
    last = folder / "wandb" / "latest-run"
    if not last.is_symlink():
        return {}
    place = last.parent / last.readlink()
    if not place.name.startswith("offline-"):
        return {"wandb": str(place)}
    lives = next((f"offline-{path.stem.replace('-', '-*-', 1)}*" for path in place.glob("run-*.wandb")), place.name)
    several = len([*last.parent.glob(lives)]) > 1
    return {"wandb": f"wandb sync {shlex.quote(str(last.parent if several else place))}{f'/{lives}' if several else ''}"}
