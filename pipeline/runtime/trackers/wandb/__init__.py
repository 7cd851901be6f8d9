"""Weights & Biases: one run for one training, over all its restarts. Nothing else knows the client."""

import json
import math
import netrc
import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pipeline import reading
from pipeline.config import Config, Spec
from pipeline.errors import PipelineError
from pipeline.runtime import files, journal, manifests
from pipeline.runtime.console import say
from pipeline.runtime.foreign import json_in
from pipeline.runtime.trackers.wandb import evaluation, file
from pipeline.wording import nearest

Mode = Literal["auto", "online", "offline", "disabled"]
OLD_NAMES = {"run": "online", "dryrun": "offline"}  # that the client yet understands
SETTINGS = {
    "silent": True,  # what there is to say is said below
    "console": "off",
    "init_timeout": 10,
    "finish_timeout": 170,  # seconds, of those that the process aside has when the training has ended
    "finish_timeout_raises": True,
    "x_graphql_retry_max": 1,
    "x_transaction_log_flush_interval": 1.0,  # seconds, of 15: what is told, and killed, is to be in the file
}


def wandb(config: Config, folder: Path, training: Path, *, project: str = "pipeline", mode: Mode = "auto") -> "_WandB":
    """`auto`: WANDB_MODE if it is set; else online if a key is configured, else offline. Nobody is asked for anything."""
    return _WandB(config, folder, training, project, _mode(mode))


def service(spec: Spec) -> tuple[str, str, bool]:
    """What this tracker would do: its mode, the address that it sends to, and whether there is a key for it.

    Raises:
        PipelineError: WANDB_MODE is none.
    """
    return _mode(spec.options.get("mode", "auto")), _address(), _has_key()


def model_name(config: Config) -> str:
    """Of the artifact that holds the weights of the run."""
    return _name(_shown(config)[0])


def _mode(asked: str) -> str:
    found = asked if asked != "auto" else os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    found, known = OLD_NAMES.get(found, found), get_args(Mode)[1:]
    if found not in known:
        raise PipelineError(f"WANDB_MODE={found}: no such mode{nearest(found, known)}")
    return found


def _address() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


class _WandB:
    """The `step` of what is logged is that of training; W&B's own counts calls.

    What an earlier life has told is read in W&B's own files. Of one that was online, what the service has not received is told again,
    in a run of that name; so is what a killed service has not written.
    """

    later = ""

    def __init__(self, config: Config, folder: Path, training: Path, project: str, mode: str) -> None:
        self._config, self._folder = config, folder
        run_id, folders = _identity(training / "wandb.json", folder)
        try:
            self._run = _begin(config, folder, run_id, project, mode)
        except _errors() as error:
            say(f"wandb: {str(error).splitlines()[0]}; going on offline")
            mode = "offline"
            _client().teardown()  # its service still holds the run's id
            self._run = _begin(config, folder, run_id, project, mode)
        place = self._run.settings.sync_dir
        self.later = "the same command sends the rest" if mode == "online" else ""  # `wandb sync` would send all of it again
        say(f"wandb: {mode}, run {self._run.id}" + (f" in {place}" if mode != "disabled" else ""))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._facts: dict[str, Any] = {"environment": manifests.environment(), "fingerprints": {}}
        self._made: dict[str, Path] = {}
        self._best: dict[str, float] = {}  # of the validations
        self._earlier = _Earlier(folders, self._run)
        for _, row in self._earlier.rows:
            self._note_best(row)

    def has(self, step: int, name: str) -> bool:
        return self._earlier.has(step, name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})
        self._note_best(values)

    def _note_best(self, values: Mapping[str, Any]) -> None:
        """Kept here, since a client knows only what its own life has logged."""
        for name, value in values.items():
            if name.startswith("validation/") and isinstance(value, int | float) and math.isfinite(value):
                better = min if name.endswith("/loss") else max
                self._best[f"best/{name}"] = better(self._best.get(f"best/{name}", value), value)

    def facts(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._facts[name] = {**self._facts.get(name, {}), **value}
        self._run.config.update(self._facts, allow_val_change=True)

    def results(self, values: Mapping[str, float]) -> None:
        self._run.summary.update({**self._best, **values})

    def made(self, stage: str, place: str) -> None:
        self._made[stage] = Path(place)
        manifest, _ = manifests.read(Path(place))
        if manifest is None:  # taken away meanwhile
            return
        self.facts({"fingerprints": {stage: Path(place).name}})
        if stage == "train":
            self.facts({"environment": manifest.environment})
        if Path(place).name not in self._earlier.artifacts:
            known = {"fingerprint": Path(place).name, "digest": manifest.digest, "seconds": manifest.seconds}
            getattr(self, f"_{stage}")(Path(place), manifest.result, known)

    def _prepare(self, place: Path, result: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """By reference, with our own digest: the data stay where they are."""
        facts = {**{name: result[name] for name in ("counts", "shape", "mean", "std")}, "classes": _few(result["classes"]), **known}
        made = _client().Artifact(_name(f"{self._config.data.source.name}-data"), type="dataset", metadata=facts)
        for path in sorted(place.glob("*.arrow")):
            made.add_reference(path.absolute().as_uri(), checksum=False)
        self._log_artifact(made, [], used=True)

    def _train(self, place: Path, result: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """`best`, which was selected, and `last`."""
        facts = {**{name: result[name] for name in ("model", "shape", "precision", "steps")}, "classes": _few(result["classes"]), **known}
        last, name = place / "last.safetensors", model_name(self._config)
        best = ["best"] if last.exists() else ["best", "last"]
        self._add(name, "model", {"weights.safetensors": place / "weights.safetensors"}, {**facts, **result["selected"]}, best, used=True)
        if last.exists():
            self._add(name, "model", {"weights.safetensors": last}, {**facts, "by": "last step", "step": result["steps"]}, ["last"])
        kept = journal.at(place / "metrics.jsonl", result["selected"]["step"])
        self.results({name: value for name, value in kept.items() if name.startswith("validation/")})  # not of the last step: a sweep asks

    def _evaluate(self, place: Path, result: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        measured: dict[str, Any] = json_in(place / "metrics.json", reading.MATRICES)
        splits = {split: values for split, values in measured.items() if split != "weights"}
        self.results({f"{split}/{k}": v for split, values in splits.items() for k, v in values.items() if isinstance(v, int | float)})
        pictures = {path.stem: path for path in (*place.glob("report/*.png"), self._made["prepare"] / "samples.png")}
        self._run.log({name: _client().Image(str(path)) for name, path in pictures.items() if path.exists()})
        shown = evaluation.shown(place, self._made["prepare"])
        if shown:
            self._run.log(shown)
        pages = {str(path.relative_to(place)): path for path in (place / "report").rglob("*") if path.is_file()}
        self._add(_name(f"{_shown(self._config)[0]}-report"), "report", pages, {**result["test"], **known})

    def _export(self, place: Path, result: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        manifest, _ = manifests.read(place)
        paths = {name: place / name for name in (manifest.outputs if manifest else ())}
        self._add(_name(f"{_shown(self._config)[0]}-export"), "export", paths, {**result, **known})

    def _add(
        self, name: str, kind: str, paths: Mapping[str, Path], facts: Mapping[str, Any], aliases: Sequence[str] = (), used: bool = False
    ) -> None:
        """Files of a finished stage change no more: they are sent from where they are, or if offline left there, and never copied."""
        made = _client().Artifact(name, type=kind, metadata=dict(facts))
        for inside, path in paths.items():
            made.add_file(str(path.absolute()), name=inside, policy="immutable", skip_cache=True)
        self._log_artifact(made, aliases, used=used)

    def _log_artifact(self, made: Any, aliases: Sequence[str], *, used: bool) -> None:
        """`used`: as an input too, of what comes after; what the client's `use_artifact` does, but offline too, and not waiting."""
        if used and not self._run.disabled:
            self._run._log_artifact(made, aliases=list(aliases), is_user_created=True, use_after_commit=True)
        else:
            self._run.log_artifact(made, aliases=list(aliases))

    def close(self, exit_code: int) -> None:
        if self._best:
            self.results({})
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            raise PipelineError(f"not all was sent; {self.later}") from None
        refused = self._refused()
        _client().teardown(exit_code)  # its service writes the last of its file when it is told to end, and not before
        if refused:
            raise PipelineError(f"the service did not take everything: {refused}; {self.later}")

    def _refused(self) -> str:
        """What the client's own log says that it has given up; it says so nowhere else (wandb 0.31)."""
        if not self.later:
            return ""
        log = (Path(self._run.settings.sync_dir) / "logs/debug-internal.log").read_bytes()
        found = re.search(rb'"ERROR[^"]*","msg":"(?:filestream: (?:fatal error: )?|sender: (?=failed to log artifact))([^"\\]*)', log)
        return found[1].decode(errors="replace").rstrip(" :{") if found else ""


class _Earlier:
    """What earlier lives have told, by W&B's own files, and by what its service says when a run is gone on with."""

    def __init__(self, folders: Sequence[Path], run: Any) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.artifacts: set[str] = set()  # fingerprints
        self._told: dict[int, set[str]] = {}
        self._until = -1  # a step up to which all was told
        online, received = not (run.offline or run.disabled), run.starting_step
        unsent = []
        for path in [] if run.disabled else file.of_run(folders, run.id):
            rows = self._read(path)
            if online and not file.is_offline(path):
                rows = [row for row in rows if row["_step"] < received]
            elif online and rows and not path.with_name(f"{path.name}.synced").exists():
                unsent.append(str(path.parent))
            self.rows += [(row["step"], row) for row in rows if "step" in row]
        for step, row in self.rows:
            self._told.setdefault(step, set()).update(row)
        if online and received and not self.rows:
            self._until = int(run.summary.get("step") or -1)
            say(f"wandb: nothing of earlier lives is on this disk; the service has run {run.id} up to step {self._until}")
        if unsent:
            say(f"wandb: `wandb sync {shlex.join(unsent)}` sends what was told offline")

    def _read(self, path: Path) -> list[dict[str, Any]]:
        rows = []
        try:
            rows = list(file.history(path))
            if file.has_exit(path):
                self.artifacts |= {json.loads(made.metadata or "{}").get("fingerprint", "") for made in file.artifacts(path)}
        except (OSError, ValueError) as error:
            say(f"wandb: {error}; what cannot be read in it is told again, and may be there twice")
        return rows

    def has(self, step: int, name: str) -> bool:
        return step <= self._until or name in self._told.get(step, ())


def _client() -> Any:
    import wandb

    return wandb


def _errors() -> type[Exception]:
    error: type[Exception] = _client().errors.Error
    return error


def _begin(config: Config, folder: Path, run_id: str, project: str, mode: str) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    name, group = _shown(config)
    of_sweep = "WANDB_SWEEP_ID" in os.environ  # its agent says what the run is called, and where
    return _client().init(
        project=None if "WANDB_PROJECT" in os.environ or of_sweep else project,
        name=os.environ.get("WANDB_NAME", name),
        group=os.environ.get("WANDB_RUN_GROUP", group),
        job_type="train",
        tags=_tags(config),
        id=None if of_sweep else run_id,
        resume="allow",
        mode=mode,
        dir=folder,
        config=config.model_dump(mode="json"),
        settings=_client().Settings(**SETTINGS, program=sys.argv[0], x_stats_pid=os.getppid()),  # of the process that trains
        allow_val_change=True,
    )


def _shown(config: Config) -> tuple[str, str | None]:
    """The name of the run, and of the group that it belongs to: runs of several seeds, or of a search, share a folder."""
    together = re.fullmatch(r"(.+)-(seeds|sweep)", config.run.folder.name)
    return (f"{together[1]}-{config.run.name}", together[1]) if together else (config.run.name, None)


def _tags(config: Config) -> list[str]:
    train = config.train
    tags = (config.data.source.name, train.model.options.get("arch") or train.model.name, train.optimizer.name)
    return [str(tag)[:64] for tag in tags if tag]


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)


def _few(classes: Sequence[str]) -> Sequence[str] | int:
    return classes if len(classes) <= 100 else len(classes)


def _has_key() -> bool:
    """Whether a key is in the environment or in ~/.netrc, where `wandb login` puts it; nothing is asked of anyone.

    Like the client, it takes one that others may read as well.
    """
    host = urlsplit(_address()).hostname or ""
    place = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return "WANDB_API_KEY" in os.environ or netrc.netrc(place).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _identity(notes: Path, folder: Path) -> tuple[str, list[Path]]:
    """The run's id, and the run folders that it has had: kept beside the training, the same for each restart, others when it is made anew.

    Who starts a run as one that is known already, as the agent of a sweep does, says so by WANDB_RUN_ID.
    """
    known = files.read_json(notes)
    before: dict[str, Any] = known if isinstance(known, dict) else {}
    run_id = os.environ.get("WANDB_RUN_ID") or str(before.get("id") or secrets.token_hex(4))
    places = before.get("folders", []) if before.get("id") == run_id else []
    if (here := str(folder.absolute())) not in places or before.get("id") != run_id:
        places = sorted({*places, here})
        files.write_json(notes, {"id": run_id, "folders": places})
    return run_id, [Path(place) for place in places]
