"""The benchmark of growth: its images, its experiments, its tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.faults  # noqa: F401 (puts `processes` where the benchmark finds it)
from bench import growth, growth_page
from pipeline.config import load
from pipeline.data.datasets import DATASETS
from pipeline.plan import check


def test_its_images_are_all_different_and_take_hardly_any_memory() -> None:
    raw = growth.growth(Path(), images=1000, classes=7, channels=3, size=8).load()
    images = np.asarray(raw.train.images)
    assert images.shape == (1000, 3, 8, 8)
    assert len(np.unique(images.reshape(1000, -1), axis=0)) == 1000
    first, last = np.lib.array_utils.byte_bounds(np.asarray(growth.growth(Path(), images=10_000_000).load().train.images))
    assert last - first < 1.1e7


@pytest.mark.parametrize("axis", growth.AXES)
def test_every_experiment_of_an_axis_is_a_good_configuration(axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "growth", growth.growth)
    for point in growth.AXES[axis]:
        words = [word for word in point.command("train") if "." in word.partition("=")[0]]
        config = check(load(None, words))
        assert config.data.source.options["images"] == point.images


def test_a_model_has_as_many_parameters_as_its_point_says() -> None:
    from pipeline.learning import models

    point = growth.AXES["parameters"][0]
    model = models.build(load(None, [*point.words]).train.model, (1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == point.value
    assert [round(point.value, -len(str(point.value)) + 1) for point in growth.AXES["parameters"]] == [10**k for k in range(4, 9)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_point_is_prepared_trained_and_leaves_nothing(processes: int, tmp_path: Path) -> None:
    row = growth.measure(growth.Point(processes, images=200, processes=processes, limit=growth.LIMIT), 1, tmp_path)
    assert {*growth_page.COLUMNS, "value", "spread"} <= row.keys()
    assert all(row[column] > 0 for column in ("prepare, s", "check, s", "open, ms", "first step, ms", "step, ms", "peak RSS, MB"))
    assert list(tmp_path.iterdir()) == []


def test_a_point_for_which_there_is_no_room_is_told_and_left_out(tmp_path: Path) -> None:
    row = growth.measure(growth.Point(10**12, images=10**12), 1, tmp_path)
    assert row == {"value": 10**12, "skipped": "needs 940800 GB of disk"}


def test_a_table_says_by_which_power_a_figure_grows() -> None:
    def row(value: int, figure: float) -> dict[str, Any]:
        return {"value": value, **dict.fromkeys(growth_page.COLUMNS, figure)}

    machine = {"cores": 4, "cpu": "a CPU", "torch": "2", "load": 0.5}
    text = growth_page.table("images", {"n": 3, "steps": 30, "machine": machine, "rows": [row(10, 1.0), row(100, 100.0)]})
    assert text.splitlines()[-1].startswith("| *power* | 2.00 |")


def test_a_short_axis_is_labelled_with_what_was_measured() -> None:
    rows = [{"value": value, **dict.fromkeys(growth_page.COLUMNS, value / 10)} for value in (1, 2, 4, 8)]
    figure = growth_page.curves({"processes": {"rows": rows}})
    figure.draw_without_rendering()
    for plot in figure.axes:
        shown = [label.get_text() for label in (*plot.get_xticklabels(), *plot.get_xticklabels(minor=True))]
        assert shown == ["1", "2", "4", "8"]
