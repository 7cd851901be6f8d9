"""Who sees which images: training its own, selection the validation split, the report the test split."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

# Of many validations of a rate that is too high the best is seldom the last.
UNSTEADY = ["train.lr=0.2", "train.schedule=constant", "train.validate_every=0.5"]


@pytest.fixture
def reported(run: Run, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a run: what was prepared, and what is reported."""
    assert run(*UNSTEADY, until="evaluate").code == 0
    place = tmp_path / "runs" / "tiny"
    return json.loads((place / "prepare/manifest.json").read_text())["result"], json.loads((place / "evaluate/metrics.json").read_text())


def test_no_image_is_in_two_splits_and_the_report_is_of_the_test_split(
    tmp_path: Path, reported: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    prepared, metrics = reported
    assert (prepared["counts"]["train"] + prepared["counts"]["validation"], prepared["counts"]["test"]) == (200, 57)
    assert set(prepared["duplicates"].values()) == {0}
    for split in ("test", "validation"):
        assert metrics[split]["images"] == prepared["counts"][split]
        assert [row["images"] for row in metrics[split]["per_class"]] == prepared["histogram"][split]
    steps = json.loads((tmp_path / "runs/tiny/train/manifest.json").read_text())["result"]["steps"]
    assert metrics["weights"]["step"] < steps, "or else the last would do"
    assert metrics["validation"]["accuracy"] == metrics["weights"]["accuracy"], "the weights that were selected are those that are reported"


def test_other_test_images_change_nothing_that_is_trained(run: Run, tmp_path: Path) -> None:
    for folder, images in (("many", 57), ("few", 20)):
        assert run(f"data.source.test={images}", until="train", in_folder=folder).code == 0
    for name in ("train/weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / "many/runs/tiny" / name).read_bytes() == (tmp_path / "few/runs/tiny" / name).read_bytes()
