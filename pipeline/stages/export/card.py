"""The card of an export, README.md in the form of the Hugging Face Hub: YAML for machines, Markdown for people.

What people have named (classes, data) gets into it as JSON or as YAML that a library wrote, never as text of ours: so no name
can end a block, add a key or draw a row.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import __version__
from pipeline.config import Spec
from pipeline.learning.statistics import wilson
from pipeline.runtime import checksums
from pipeline.runtime.manifests import environment
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import ExportedModel, Format, PreparedData, Report, TrainedModel
from pipeline.stages.export.formats import CALIBRATION
from pipeline.stages.export.use import use

FEW = 100  # classes that are named
CITED = {  # by the name of a source: whose data they are
    "mnist": "[MNIST](http://yann.lecun.com/exdb/mnist/): Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "
    '"Gradient-based learning applied to document recognition", Proceedings of the IEEE, 1998.',
    "cifar10": "[CIFAR-10](https://www.cs.toronto.edu/~kriz/cifar.html): A. Krizhevsky, "
    '"Learning multiple layers of features from tiny images", 2009.',
    "digits": "[Optical Recognition of Handwritten Digits](https://doi.org/10.24432/C50P49): E. Alpaydin, C. Kaynak, UCI, 1998; "
    "the part of it that scikit-learn has.",
    "synthetic": "They were drawn by a computer to test this package, and show nothing.",
}
ON_HUB = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}  # the same data there
LICENCE = (
    "None is given: whoever publishes these files decides, and writes it into the head of this card, as `license: apache-2.0` say. "
    "The data that the model has learnt from have terms of their own."
)


def card(data: PreparedData, trained: TrainedModel, report: Report, exported: ExportedModel, space: Workspace) -> str:
    source = space.config.data.source
    name = f"{trained.model.name} on {source.name}"  # not the run's: other runs share this artifact
    head = yaml.safe_dump(_head(name, source, data, trained, report, exported), sort_keys=False, allow_unicode=True, width=1000)
    parts = {
        "Results": _results(data, trained, report),
        "Data": _data(source, data),
        "Formats": _formats(exported),
        "Use": use(data, trained, exported),
        "Licence": LICENCE,
        "Limits": _limits(source, data, trained, exported),
        "Checksums": f"`{checksums.NAME}` has the sha256 of each file: `sha256sum -c {checksums.NAME}` checks them.",
        "Recipe": _recipe(space),
    }
    sections = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    return f"---\n{head}---\n\n# {name}\n\n{_first_words(trained)}\n\n{sections}\n"


def _head(name: str, source: Spec, data: PreparedData, trained: TrainedModel, report: Report, exported: ExportedModel) -> dict[str, Any]:
    """In the words of the Hub: huggingface.co/docs/hub/model-cards; metrics by the names of its `evaluate`."""
    metrics = {"accuracy": ("Accuracy", "accuracy"), "f1": ("F1, mean over classes", "macro_f1")}
    found = [{"type": kind, "name": words, "value": report.test[key]} for kind, (words, key) in metrics.items()]
    on_hub = _on_hub(source) or ("" if data.notes else ON_HUB.get(source.name, ""))  # of other files than the official ones it is noted
    split = str(source.options.get("test", "test")) if source.name == "huggingface" else "test"
    dataset = {"type": on_hub or source.name, "name": on_hub or source.name, "split": split}
    task = {"type": "image-classification", "name": "Image classification"}
    return {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", *exported.formats, trained.model.name],
        **({"datasets": [on_hub]} if on_hub else {}),
        "metrics": [*metrics],
        "model-index": [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": found}]}],
    }


def _on_hub(source: Spec) -> str:
    """The name of the data on the Hub; empty if they are not from there."""
    path = str(source.options.get("path", ""))
    return path if source.name == "huggingface" and path and not Path(path).is_absolute() and not Path(path).exists() else ""


def _first_words(trained: TrainedModel) -> str:
    channels, height, width = trained.shape
    kind = "grey" if channels == 1 else "colour"
    return (
        f"`{trained.model.name}`, for {kind} images of {height} by {width} pixels and {len(trained.classes)} classes. Trained for "
        f"{trained.steps:,} steps on {trained.images:,} images, counting each time; of all steps, the weights of step "
        f"{trained.selected['step']:,} were kept, by {trained.selected['by']}. The test split had no part in that."
    )


def _results(data: PreparedData, trained: TrainedModel, report: Report) -> str:
    def row(split: str, found: Mapping[str, float]) -> str:
        images = round(found["images"])
        low, high = wilson(round(found["accuracy"] * images), images)
        rest = " | ".join(f"{found[key]:.4f}" for key in ("balanced_accuracy", "macro_f1", "top5", "loss"))
        return f"| {split} | {images:,} | {found['accuracy']:.4f} | {low:.4f} to {high:.4f} | {rest} |\n"

    rows = row("test", report.test) + (row("validation", report.validation) if report.validation else "")
    return (
        "| split | images | accuracy | 95 % interval | balanced accuracy | macro F1 | top-5 | loss |\n"
        f"| --- | --- | --- | --- | --- | --- | --- | --- |\n{rows}\n"
        "The interval is Wilson's, of the share of all such images; it says nothing of other seeds, or of other images."
    )


def _data(source: Spec, data: PreparedData) -> str:
    counts = ", ".join(f"{split} {count:,}" for split, count in data.counts.items())
    doubles = sum(count for pair, count in data.duplicates.items() if "test" in pair and "train" in pair)
    about = {"source": source.model_dump(mode="json"), "classes": data.classes[:FEW], "notes": data.notes}
    more = f" {len(data.classes) - FEW:,} more classes are in `model.json`." if len(data.classes) > FEW else ""
    whose = f"{CITED[source.name]}\n\n" if source.name in CITED else ""
    return (
        f"{whose}Images: {counts}; {doubles:,} of the test split are in the training split too, pixel for pixel.{more} "
        f"Where they are from, the classes in the order of the probabilities, and what was to be noted:\n\n{_json(about)}"
    )


def _recipe(space: Workspace) -> str:
    """All that the training depends on, the defaults of this version included: a file that `pipeline run` takes.

    But for where the data lie; what they are is said by their source.
    """
    sections = {
        "data": space.config.data.model_dump(mode="json", exclude={"root"}),
        "train": space.config.train.model_dump(mode="json"),
    }
    lines = ",\n".join(f"{_line(name)}: {{\n{_members(values)}\n}}" for name, values in sections.items())
    return (
        f"Made by pipeline {__version__}. With this in a file, `pipeline run FILE` trains the same again (`--data-dir` says where the "
        f"data are, if they are not in `data`); nothing is left out that has a default, since another version may have another.\n\n"
        f"```json\n{{{lines}}}\n```"
    )


def _members(values: Mapping[str, Any]) -> str:
    return ",\n".join(f"  {_line(key)}: {_line(value)}" for key, value in values.items())


def _json(value: Any) -> str:
    """A block that nothing in `value` can end: it is a line, and begins with a brace."""
    return f"```json\n{_line(value)}\n```"


def _line(value: Any) -> str:
    plain = json.dumps(value, ensure_ascii=False)
    return plain if plain.isprintable() else json.dumps(value)  # what turns the direction of writing, say, is not


def _formats(exported: ExportedModel) -> str:
    left_out = "".join(f"\n\n`{name}` was left out: {why}." for name, why in exported.left_out.items())
    made = environment()
    return (
        "| file | format | bytes | as the trained model | accuracy | logits differ by | ms, batch 1 | ms, batch 64 | images/s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        f"{''.join(_format(name, one) for name, one in exported.formats.items())}\n"
        f"Each file was opened by a process without the package that made it, and given all {exported.images:,} images of the test "
        f"split; the trained model, in float32 by torch {made['torch']}, is right on {exported.accuracy:.4f} of them, and its largest "
        f"logit is {exported.largest_logit:.3g}. Times are medians of up to {_most(exported)} runs on {exported.threads} "
        f"thread{'s' if exported.threads != 1 else ''} of {made['cpu'] or 'a CPU'}, beside whatever else ran there; images/s are those of "
        f"batch 64.{_choice(exported)}{left_out}"
    )


def _choice(exported: ExportedModel) -> str:
    """Which to take, of several that can be run, by what was measured."""
    timed = {made.file: made.ran.latency for made in exported.formats.values() if made.ran}
    if len(timed) < 2:
        return ""
    one, many = (min(timed, key=lambda file: timed[file][batch]) for batch in (1, 64))
    least = min((made.bytes, made.file) for made in exported.formats.values() if made.ran)[1]
    both = "for one image and for 64 at once" if one == many else f"for one image, `{many}` for 64 at once"
    return f"\n\nBy these figures `{one}` is the fastest {both}, and `{least}` the smallest; on another machine measure again."


def _format(name: str, made: Format) -> str:
    ran = made.ran
    if ran is None:
        return f"| `{made.file}` | {name} | {made.bytes:,} | bit for bit | | | | | |\n"
    times = " | ".join(f"{ms:.3g}" for ms in ran.latency.values())
    return (
        f"| `{made.file}` | {name} | {made.bytes:,} | {100 * ran.agreement:.2f} % of classes | {ran.accuracy:.4f} | {ran.difference:.2g} | "
        f"{times} | {ran.images_per_second:,.0f} |\n"
    )


def _most(exported: ExportedModel) -> int:
    return max(count for made in exported.formats.values() if made.ran for count in made.ran.runs.values())


def _limits(source: Spec, data: PreparedData, trained: TrainedModel, exported: ExportedModel) -> str:
    limits = [
        f"It was tested on the test split of `{source.name}` and on nothing else: not on images of other origin, nor on worse ones.",
        f"Each image is given one of the {len(trained.classes)} classes; there is no answer for an image of none of them.",
        *(
            []
            if trained.precision == "no"
            else [f"It was trained and evaluated with train.precision={trained.precision}; the files compute in float32."]
        ),
    ]
    if "int8" in exported.formats:
        limits.append(
            f"The ranges of int8 are those of {min(CALIBRATION, data.counts['validation'])} validation images; that it is here "
            "at all is decided by what it loses on the test split."
        )
    if "aotinductor" in exported.formats:
        limits.append(f"What AOTInductor has compiled runs on CPUs of the kind above, with torch {environment()['torch']}.")
    return "\n".join(f"- {limit}" for limit in limits)
