"""The card of an export has the Hub's form, whatever people have called things, and tells what a reader needs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY
from huggingface_hub import ModelCard
from processes import launch

from pipeline.config import Config, Spec, load
from pipeline.learning.statistics import wilson
from pipeline.plan import EVALUATE, EXPORT, PREPARE, TRAIN, check
from pipeline.runtime import manifests
from pipeline.stages.export.card import card

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


def written(whole: Path, config: Config, classes: list[str]) -> str:
    """The card of the run, had its classes and its configuration been others."""
    data = artifact(whole, PREPARE).model_copy(update={"classes": classes, "notes": HOSTILE})
    trained = artifact(whole, TRAIN).model_copy(update={"classes": classes})
    space: Any = SimpleNamespace(config=config)
    return card(data, trained, artifact(whole, EVALUATE), artifact(whole, EXPORT), space)


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
    assert "It takes 12 by 12 pixels." in text
    assert "evaluated with train.precision=bf16; the files compute in float32" in text
    for name, made in artifact(whole, EXPORT).formats.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{made.file}` | {name} | {made.bytes:,} | "))
        assert (row.count("|"), "bit for bit" in row) == (10, name == "safetensors")


SECTIONS = ["Results", "Data", "Formats", "Use", "Limits", "Checksums", "Recipe"]


def test_what_it_says_of_use_works_in_five_lines(whole: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (whole / "export/README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert len(block.split("\n\n")) == 2
        assert len(block.replace("\n\n", "\n").splitlines()) <= 5
        subprocess.run([sys.executable, "-I", "-c", block], cwd=whole / "export", check=True)


def test_its_digests_are_those_of_the_files(whole: Path) -> None:
    block = (whole / "export/README.md").read_text().partition("## Checksums")[2].split("```")[1].lstrip("\n")
    names = {line.split()[1] for line in block.splitlines()}
    assert names == {"model.safetensors", "model.onnx", "model.int8.onnx", "model.json"}
    subprocess.run(["sha256sum", "-c", "--strict"], input=block, text=True, cwd=whole / "export", check=True, capture_output=True)


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
