"""The page of a run, made from the artifacts that its folder links to: after an evaluation, or when somebody asks."""

from pathlib import Path

from pipeline import reading
from pipeline.config import Config
from pipeline.errors import ConfigError, of_the_machine
from pipeline.plan import PREPARE, TRAIN, check
from pipeline.runtime import files, manifests
from pipeline.runtime.console import say
from pipeline.runtime.foreign import json_in, mapping
from pipeline.runtime.manifests import A, Manifest, Stage

PAGE = Path("report", "index.html")


def remake(run: Path) -> Path:
    """Make the page of the run in the folder `run`, whether there is one or not; where it is.

    An evaluation that failed its gate has no manifest, but it has been measured.

    Raises:
        ConfigError: there is no such run, or something that the page is made from is missing or damaged.
    """
    place = (run / PAGE).parent.resolve().parent  # where the evaluation is, finished or not
    if not (run / "report").is_symlink() or not (place / "metrics.json").is_file():
        status = mapping(json_in(run / "status.json"))
        how = (
            f"it {status.get('state')}: {status['message']}"
            if status.get("message")
            else "`pipeline evaluate` with its configuration makes one"
        )
        raise ConfigError(f"{run} has no evaluation to report on; {how}")
    data, prepared = _found(run, PREPARE)
    trained, training = _found(run, TRAIN)
    made = {"prepare": prepared, "train": training}
    evaluation, broken = manifests.read(place)
    if broken := broken or (files.damage(place, evaluation.outputs) if evaluation else ""):
        raise ConfigError(f"the evaluation in {place} is damaged: {broken}; `pipeline evaluate` makes it again")
    if evaluation:
        if str(PAGE) in evaluation.outputs:
            raise ConfigError(f"{run}: an earlier version evaluated it, and its page cannot change; `pipeline evaluate` makes both again")
        made["evaluate"] = evaluation
    of = evaluation.reasons if evaluation else mapping(json_in(place / "metrics.json", reading.MATRICES).get("of"))
    if any(of.get(name) != artifact.digest for name, artifact in (("prepare", data), ("train", trained))):
        raise ConfigError(f"{run}: its training is not the one that was evaluated; `pipeline evaluate` with its configuration goes on")
    from pipeline.stages.report import page
    from pipeline.stages.report.facts import Facts

    defaults = check(Config()).model_dump(mode="json")
    return page.write(Facts.of(place, data, trained, made, defaults))


def attempt(run: Path) -> None:
    """`remake`; if it fails that is said in a line, since the evaluation stands."""
    try:
        remake(run)
    except Exception as error:
        what = of_the_machine(error) if isinstance(error, OSError) else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        say(f"report: the page could not be made: {what}; try `pipeline report {run}`")


def _found(run: Path, stage: Stage[A]) -> tuple[A, Manifest]:
    place = (run / stage.name).resolve()
    manifest, broken = manifests.read(place)
    if manifest is None or (broken := files.damage(place, manifest.outputs)):
        what = f"damaged: {broken}" if broken else "not finished"
        raise ConfigError(f"{run / stage.name} is {what}; `pipeline {stage.name}` with its configuration makes it")
    return manifests.artifact(stage, place, manifest), manifest
