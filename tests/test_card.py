"""The card of an export has the Hub's form, whatever people have called things, and tells what a reader needs."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml
from conftest import TINY
from huggingface_hub import ModelCard
from processes import launch

from pipeline.config import Config, Spec, load
from pipeline.data.datasets import DATASETS
from pipeline.learning.statistics import wilson
from pipeline.plan import EVALUATE, EXPORT, PREPARE, TRAIN, check
from pipeline.runtime import checksums, manifests
from pipeline.stages.artifacts import ExportedModel, Format
from pipeline.stages.export.card import CITED, ON_HUB, card
from pipeline.stages.export.formats import FILES
from pipeline.stages.export.use import use

HOSTILE = [
    "---",
    "a | b\n# c",
    "```\n---\nlicense: mit\n---",
    "ключ",
    "\u202eback\r\n",
    "{{x}}",
    "<script>",
    "${x}",
    "'\"\\",
    "\x00\x1b[31m",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    ended = launch(folder, ["run", *TINY, "train.steps=60", "export.formats=[int8]", "export.int8_loss=1", "train.precision=bf16"])
    assert ended.code == 0, ended.output
    return folder / "runs/tiny"


def artifact(whole: Path, stage: manifests.Stage[manifests.A]) -> manifests.A:
    manifest, _ = manifests.read(whole / stage.name)
    assert manifest is not None
    return manifests.artifact(stage, whole / stage.name, manifest)


def written(whole: Path, config: Config, classes: list[str], exported: ExportedModel | None = None, notes: Sequence[str] = HOSTILE) -> str:
    """The card of the run, had its classes, its configuration and so on been others."""
    data = artifact(whole, PREPARE).model_copy(update={"classes": classes, "notes": notes})
    trained = artifact(whole, TRAIN).model_copy(update={"classes": classes})
    space: Any = SimpleNamespace(config=config)
    return card(data, trained, artifact(whole, EVALUATE), exported or artifact(whole, EXPORT), space)


def read(text: str) -> Any:
    """As the Hub's client does; its types are those of any card."""
    return ModelCard(text).data


def parts(text: str) -> list[str]:
    """Its headings, outside blocks of code."""
    return re.findall(r"^#+ .*$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def test_the_hub_reads_from_it_what_was_measured(whole: Path) -> None:
    found = read((whole / "export/README.md").read_text())
    test = artifact(whole, EVALUATE).test
    assert (found.library_name, found.pipeline_tag, found.model_name) == ("onnx", "image-classification", "lenet on synthetic")
    assert {"onnx", "safetensors", "int8"} <= {*found.tags}
    assert found.eval_results is not None
    results = {result.metric_type: result for result in found.eval_results}
    assert {kind: result.metric_value for kind, result in results.items()} == {"accuracy": test["accuracy"], "f1": test["macro_f1"]}
    for result in found.eval_results:
        said = (result.task_type, result.dataset_type, result.dataset_name, result.dataset_split)
        assert said == ("image-classification", "synthetic", "synthetic", "test")


def test_it_tells_data_results_limits_and_what_each_format_does(whole: Path) -> None:
    text, test = (whole / "export/README.md").read_text(), artifact(whole, EVALUATE).test
    assert parts(text) == [f"{'#' * (1 + (k > 0))} {title}" for k, title in enumerate(["lenet on synthetic", *SECTIONS])]
    low, high = wilson(round(57 * test["accuracy"]), 57)
    assert f"| test | 57 | {test['accuracy']:.4f} | {low:.4f} to {high:.4f} | " in text
    assert "evaluated with train.precision=bf16; the files compute in float32" in text
    for name, made in artifact(whole, EXPORT).formats.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{made.file}` | {name} | {made.bytes:,} | "))
        assert (row.count("|"), "bit for bit" in row) == (10, name == "safetensors")


SECTIONS = ["Results", "Data", "Formats", "Use", "Licence", "Limits", "Checksums", "Recipe"]


def blocks_of_python(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_what_it_says_of_use_works_in_five_lines(whole: Path) -> None:
    _, *blocks = blocks_of_python((whole / "export/README.md").read_text())
    assert len(blocks) == 3
    for block in blocks:
        assert len(block.split("\n\n")) == 2
        assert len(block.replace("\n\n", "\n").splitlines()) <= 5
        subprocess.run([sys.executable, "-I", "-c", block], cwd=whole / "export", check=True)


PICTURES: dict[str, Callable[[PIL.Image.Image], PIL.Image.Image]] = {
    "as in the test split": lambda image: image,
    "larger, not square": lambda image: image.resize((50, 31)),
    "transparent": lambda image: image.resize((20, 20)).convert("RGBA"),
    "of 200 colours": lambda image: image.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=200),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("channels", [3, 1])
def test_its_lines_from_a_picture_to_a_class_give_what_predict_gives(whole: Path, tmp_path: Path, channels: int) -> None:
    """By a process that has nothing of ours, on an image of the test split and on others made of it."""
    if channels == 1:
        ended = launch(tmp_path, ["run", *TINY, "data.channels=1", "train.steps=60"])
        assert ended.code == 0, ended.output
    run = whole if channels == 3 else tmp_path / "runs/tiny"
    code, *_ = blocks_of_python((run / "export/README.md").read_text())
    shutil.copytree(run / "export", tmp_path / "export")
    image = PIL.Image.fromarray(np.array(artifact(whole, PREPARE).open("test").images[0][7]).transpose(1, 2, 0))
    for name, made in PICTURES.items():
        made(image).save(tmp_path / f"{name}.png")
    turned = image.resize((30, 20)).getexif()
    turned[0x0112] = 6  # EXIF's orientation: it is shown turned by 90 degrees
    image.resize((30, 20)).save(tmp_path / "turned.png", exif=turned)
    found = {}
    for path in tmp_path.glob("*.png"):
        shutil.copy(path, tmp_path / "export/image.png")
        told = subprocess.run(
            [sys.executable, "-I", "-c", REFUSING + code + FOR_TORCH], cwd=tmp_path / "export", capture_output=True, text=True, check=True
        )
        found[path.name] = told.stdout.strip()
    (tmp_path / "export/image.png").unlink()
    said = launch(tmp_path, ["predict", "export", *found, "--format", "jsonl"])
    assert said.code == 0, said.output
    assert found == {row["image"]: row["class"] for row in map(json.loads, said.output.splitlines())}


REFUSING = "import sys; sys.modules.update(pipeline=None, torch=None)\n"
FOR_TORCH = "\nassert images.flags.c_contiguous and images.flags.writeable"


def test_it_says_how_pictures_are_made_what_the_model_takes(whole: Path) -> None:
    text = (whole / "export/README.md").read_text()
    assert "make it red, green and blue, scale it in its own proportions and cut it about its centre, until it is 12 pixels wide" in text
    assert "`pipeline predict FOLDER IMAGE...`" in text
    data, polarity = artifact(whole, PREPARE), re.compile(r"were (0\.\d\d) bright in the mean, where 0 is black and 1 white(.*?);")
    assert not polarity.search(text), "of colours it says nothing"
    said = []
    for mean in (0.13, 0.5, 0.87):
        grey = data.model_copy(update={"shape": (1, 12, 12), "mean": (mean,)})
        match = polarity.search(use(grey, artifact(whole, TRAIN), artifact(whole, EXPORT)))
        assert match is not None
        said.append(match.groups())
    assert said == [("0.13", ", so mostly light on dark"), ("0.50", ""), ("0.87", ", so mostly dark on light")]


def test_it_says_which_format_to_take_by_what_was_measured(whole: Path) -> None:
    exported = artifact(whole, EXPORT)
    made = {}
    for name, one, many, size in (("onnx", 1.0, 9.0, 300), ("int8", 2.0, 8.0, 100)):
        ran = exported.formats["onnx"].ran
        assert ran is not None
        made[name] = Format(file=FILES[name], bytes=size, ran=ran.model_copy(update={"latency": {1: one, 64: many}}))
    several, alone = (exported.model_copy(update={"formats": chosen}) for chosen in (made, {"onnx": made["onnx"]}))
    said = "`model.onnx` is the fastest for one image, `model.int8.onnx` for 64 at once, and `model.int8.onnx` the smallest;"
    assert said in written(whole, check(load(None, TINY)), ["a"], several)
    assert "the fastest" not in written(whole, check(load(None, TINY)), ["a"], alone)


def test_its_recipe_is_a_file_that_makes_the_same(whole: Path) -> None:
    text = (whole / "export/README.md").read_text()
    block = text.partition("## Recipe")[2].split("```json\n")[1].split("```")[0]
    (whole / "recipe.json").write_text(block)
    again = launch(whole.parents[1], ["evaluate", str(whole / "recipe.json"), "run.name=again", "run.trackers=[]"])
    assert [line for line in again.output.splitlines() if ": fresh" in line] == [
        f"{stage}: fresh" for stage in ("prepare", "train", "evaluate")
    ]


def test_data_that_are_known_are_cited_and_linked_to(whole: Path) -> None:
    config = check(load(None, ["data.source=mnist"]))
    text = written(whole, config, ["0", "1"], notes=[])
    assert read(text).datasets == ["ylecun/mnist"]
    assert '[MNIST](http://yann.lecun.com/exdb/mnist/): Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based' in text
    assert read(written(whole, config, ["0"], notes=["not the official files, by their checksums: t10k"])).datasets is None
    assert CITED.keys() <= DATASETS.keys() >= ON_HUB.keys()


def test_it_names_the_file_with_the_digests_of_all_others(whole: Path) -> None:
    (command,) = re.findall(r"`(sha256sum .*)` checks them", (whole / "export/README.md").read_text())
    checked = subprocess.run(command.split(), text=True, cwd=whole / "export", check=True, capture_output=True).stdout
    assert {*re.findall(r"^(.*): OK$", checked, re.MULTILINE)} == {*artifact(whole, EXPORT).files()} - {checksums.NAME}


@pytest.mark.parametrize("kind", ["classes", "data"])
def test_no_name_can_break_it(whole: Path, kind: str) -> None:
    source = Spec(name="huggingface", options={"path": HOSTILE[2], "test": HOSTILE[1]})
    config = check(load(None, TINY))
    if kind == "data":
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    text = written(whole, config, HOSTILE)
    assert [part.lstrip("# ") for part in parts(text)][1:] == SECTIONS
    head = read(text).to_dict()
    assert head.get("license") is None
    assert yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n")).keys() == head.keys()
    block = next(block for block in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if '"classes"' in block)
    assert json.loads(block)["classes"] == HOSTILE
    assert np.all([c.isprintable() or c == "\n" for c in text])


def test_data_of_the_hub_are_linked_to(whole: Path) -> None:
    config = check(load(None, ["data.source={name: huggingface, path: ylecun/mnist}"]))
    found = read(written(whole, config, ["0", "1"]))
    assert found.datasets == ["ylecun/mnist"]
    assert found.eval_results is not None
    assert found.eval_results[0].dataset_type == "ylecun/mnist"


def test_of_very_many_classes_the_first_are_named(whole: Path) -> None:
    text = written(whole, check(load(None, TINY)), [f"class {k}" for k in range(1234)])
    assert "1,134 more classes are in `model.json`." in text
    assert '"class 99"]' in text
