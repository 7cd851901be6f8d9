"""Finished runs beside each other: what was configured differently, what came of it, and whether that can be chance.

What is compared is a run, or a folder of seeds, which counts as one experiment. The first is the
one that each of the others is tested against.
"""

import itertools
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.learning.statistics import Spread, mcnemar, paired_t, spread
from pipeline.runs import flat
from pipeline.runtime import files, journal
from pipeline.runtime.foreign import json_in, mapping, number
from pipeline.seeds import columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 30  # characters of a value, beyond which it gets a line of its own
WIDTH = 78  # characters of a line, without its indentation
MEASURES: dict[str, tuple[str, str, Callable[..., float] | None]] = {  # title, format, which is the best
    "test_accuracy": ("test accuracy", ".4f", max),
    "test_loss": ("test loss", ".4f", min),
    "validation_accuracy": ("validation accuracy", ".4f", max),
    "steps": ("steps", ",.0f", None),
    "training_seconds": ("training s", ",.1f", min),
    "images_per_second": ("images/s", ",.0f", max),
}


@dataclass(frozen=True)
class Run:
    """A finished run, as its folder has it."""

    folder: Path
    settings: Mapping[str, str]  # key -> value, as overrides are written
    summary: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]  # of the journal

    @cached_property
    def test_data(self) -> tuple[Any, ...]:
        """Equal for runs that are tested on the same images, in the same order, with the same classes."""
        manifest = files.read_json(self.folder / "prepare" / files.MANIFEST)
        made = manifest["result"]
        return made["classes"], [manifest["outputs"][name]["sha256"] for name in made["shards"]["test"]]

    def right(self) -> NDArray[np.bool_]:
        """[N]: whether each image of the test split was given its class."""
        from safetensors.numpy import load_file

        path = self.folder / "evaluate" / "predictions.safetensors"
        if not path.is_file():
            raise ConfigError(f"{path} is not there: an older version made this evaluation; run the pipeline again")
        kept = load_file(path)
        return np.asarray(kept["test.labels"] == kept["test.predicted"])

    @property
    def epochs_a_step(self) -> float:
        batch_size = self.summary["images"] / self.summary["steps"]
        return float(batch_size / self.summary["counts"]["train"])


@dataclass(frozen=True)
class Experiment:
    name: str
    runs: dict[int, Run]  # by seed
    of_seeds: bool
    left_out: Sequence[str] = ()  # why, of each seed that is not finished


def compare(folders: Sequence[Path], picture: Path) -> Iterator[str]:
    """What there is to say, part by part; the curves are drawn into `picture`.

    Raises:
        ConfigError: fewer than two folders, one that is not of a run or of seeds, or a run that is not finished.
    """
    if len(folders) < 2:
        raise ConfigError("compare: give the folders of two runs or more")
    experiments = [read(folder) for folder in folders]
    for experiment in experiments:
        yield from experiment.left_out
    yield "runs\n" + "\n".join(f"  {k}  {experiment.name}" for k, experiment in enumerate(experiments, 1))
    yield f"\nconfiguration\n{_indented(_settings(experiments) or 'no differences')}"
    yield f"\nresults (* the best)\n{_indented(_tables(_results(experiments)))}"
    yield "\npaired tests on the test split, beside run 1"
    for k, other in enumerate(experiments[1:], 2):
        yield f"  {k}  {other.name}\n{_indented(_indented(_test(experiments[0], other, k)))}"
    draw(experiments, picture)
    yield f"\n  curves   {picture}"


def read(folder: Path) -> Experiment:
    """The run in `folder`, or the finished ones of its seeds.

    Raises:
        ConfigError: it has neither.
    """
    name = str(folder)
    if seeds := sorted(path.parent for path in folder.glob("seed-*/config.yaml")):
        unfinished = {path: why for path in seeds if (why := _unfinished(path))}
        found = [_run(path) for path in seeds if path not in unfinished]
        if not found:
            raise ConfigError(f"{folder}: none of its {len(seeds)} seeds is finished; `pipeline seeds` goes on with them")
        runs = {int(run.settings["train.seed"]): run for run in found}
        return Experiment(name, dict(sorted(runs.items())), True, [f"{path} is left out: {why}" for path, why in unfinished.items()])
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run, nor one of seeds; a run leaves runs/NAME, seeds leave runs/NAME-seeds")
    if why := _unfinished(folder):
        raise ConfigError(f"{folder}: {why}; `pipeline run` with its configuration finishes it")
    run = _run(folder)
    return Experiment(name, {int(run.settings["train.seed"]): run}, False)


def _unfinished(folder: Path) -> str:
    """Why the run in `folder` cannot be compared; empty if it can."""
    summary = json_in(folder / "summary.json")
    made = mapping(summary.get("fingerprints"))
    manifests = {stage: files.read_manifest(folder / stage) for stage in made}
    for stage, (manifest, broken) in manifests.items():
        used = {} if manifest is None or stage == "prepare" else manifest["outputs"]  # of the data, the digests alone
        if broken := broken or files.damage(folder / stage, used):
            return f"its {stage} is damaged, {broken}"
    if not made or any(manifest is None for manifest, _ in manifests.values()):
        state = json_in(folder / "status.json").get("state", "unknown")
        return f"not finished, it is {state} and there is no result yet"
    if any((folder / stage).resolve().name != fingerprint for stage, fingerprint in made.items()):
        return "not finished, its result is that of an earlier configuration"
    if not (number(summary.get("steps")) and number(summary.get("images")) and number(mapping(summary.get("counts")).get("train"))):
        return "its summary.json is not as a run writes it"
    return ""


def _run(folder: Path) -> Run:
    return Run(folder, _settled(folder), files.read_json(folder / "summary.json"), journal.read(folder / "metrics.jsonl"))


def _settled(folder: Path) -> dict[str, str]:
    """What the artifacts of a run were made from, whatever was asked for since."""
    tree: dict[str, dict[str, Any]] = {}
    for stage in ("prepare", "train", "evaluate", "export"):
        for name, value in files.read_json(folder / stage / files.MANIFEST)["reasons"].items():
            section, dot, key = name.partition(".")
            if dot:
                tree.setdefault(section, {})[key] = value
    return flat(tree)


def _settings(experiments: Sequence[Experiment]) -> str:
    """The keys whose values differ, and their values; empty if there are none."""
    names = [str(k) for k in range(1, len(experiments) + 1)]
    keys = dict.fromkeys(key for experiment in experiments for run in experiment.runs.values() for key in run.settings)
    rows, long = [["", *names]], []
    for key in keys:
        values = [", ".join(dict.fromkeys(run.settings.get(key, "none") for run in e.runs.values())) for e in experiments]
        if len(set(values)) > 1 and max(map(len, values)) <= WIDE:
            rows.append([key, *values])
        elif len(set(values)) > 1:
            long.append(f"{key}\n{_indented(_lines(names, values))}")
    return "\n".join([*([_tables(rows)] if len(rows) > 1 else []), *long])


def _lines(names: Sequence[str], values: Sequence[str]) -> str:
    texts = (f"{name}: {value}" for name, value in zip(names, values, strict=True))
    return "\n".join(textwrap.fill(text, WIDTH - 2, subsequent_indent="   ") for text in texts)


def _tables(rows: Sequence[Sequence[str]]) -> str:
    """A row's name, then what each experiment has there; as many tables as it takes to be no wider than `WIDTH`."""
    names, *others = zip(*rows, strict=True)
    tables = []
    while others:
        room = itertools.accumulate((2 + max(map(len, column)) for column in others), initial=max(map(len, names)))
        count = max(1, sum(end <= WIDTH for end in room) - 1)
        tables.append(columns(list(zip(names, *others[:count], strict=True))))
        others = others[count:]
    return "\n\n".join(tables)


def _results(experiments: Sequence[Experiment]) -> list[list[str]]:
    """A row a measure: of each experiment the mean and, if there are several seeds, the standard deviation."""
    rows = [["", *(f"{k}  " for k in range(1, len(experiments) + 1))], ["seeds", *(f"{len(each.runs)}  " for each in experiments)]]
    for name, (title, form, best) in MEASURES.items():
        values = [[run.summary[name] for run in each.runs.values() if run.summary.get(name) is not None] for each in experiments]
        found = [spread(several) if several else None for several in values]
        means = [each.mean for each in found if each]
        marked = best(means) if best and len(set(means)) > 1 else None
        rows.append([title, *("" if each is None else f"{_shown(each, form)} {' *'[each.mean == marked]}" for each in found)])
    return rows


def _shown(found: Spread, form: str) -> str:
    return f"{found.mean:{form}}" + ("" if found.std is None else f" ± {found.std:{form}}")


def _test(first: Experiment, other: Experiment, number: int) -> str:
    """The paired test that the two allow, in words."""
    one, two = (next(iter(experiment.runs.values())) for experiment in (first, other))
    if one.test_data != two.test_data:
        return "tested on other images: no paired test is possible"
    if first.of_seeds or other.of_seeds:
        common = sorted(first.runs.keys() & other.runs.keys())
        if len(common) < 2:
            return f"no paired test is possible: it takes two common seeds or more, there are {len(common)}"
        scores = [[experiment.runs[seed].summary["test_accuracy"] for seed in common] for experiment in (first, other)]
        return f"{paired_t(*scores)}\npaired t-test over {len(common)} common seeds"
    rights = one.right(), two.right()
    only_first, only_other = (int((a & ~b).sum()) for a, b in (rights, rights[::-1]))
    counts = f"of {len(rights[0]):,} images run 1 alone is right on {only_first:,}, run {number} on {only_other:,}"
    return f"{mcnemar(only_first, only_other, len(rights[0]))}\nMcNemar's exact test: {counts}"


def draw(experiments: Sequence[Experiment], picture: Path) -> None:
    """Loss and accuracy of both splits against the epoch, a colour for each experiment, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pipeline.stages.report.theme import STYLE

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, 2)
        for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
            for k, experiment in enumerate(experiments):
                _curves(axis, experiment, what, f"C{k}")
            axis.set_xlabel("epoch")
            axis.set_title(what)
        axes[0].set_ylim(bottom=0)
        _legend(figure, experiments)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, format="png", dpi=150)


def _curves(axis: "Axes", experiment: Experiment, what: str, color: str) -> None:
    """The validation whole, the training dashed; of seeds the mean, and each by a thin line."""
    for split, dashes in (("train", (0, (3, 2))), ("validation", "-")):
        curves = [_points(run, f"{split}/{what}") for run in experiment.runs.values()]
        for curve in curves if len(curves) > 1 else ():
            axis.plot(list(curve), list(curve.values()), color=color, linestyle=dashes, linewidth=0.5, alpha=0.3)
        common = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
        means = [statistics.fmean(curve[epoch] for curve in curves) for epoch in common]
        width = 1.5 if split == "validation" else 0.9
        axis.plot(common, means, color=color, linestyle=dashes, linewidth=width, marker="." if len(common) < 3 else "")


def _points(run: Run, name: str) -> dict[float, float]:
    """Epoch -> value."""
    return {line["step"] * run.epochs_a_step: line[name] for line in run.lines if name in line}


def _legend(figure: "Figure", experiments: Sequence[Experiment]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=f"C{k}") for k in range(len(experiments))]
    lines += [Line2D([], [], color="gray"), Line2D([], [], color="gray", linestyle=(0, (3, 2)), linewidth=0.9)]
    names = [experiment.name for experiment in experiments]
    figure.legend(lines, [*names, "validation", "train"], loc="outside lower center", ncols=min(4, len(lines)), frameon=False)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
