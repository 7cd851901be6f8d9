"""Predictions are kept image by image; runs and seeds are put beside each other with statistics that can be checked by hand."""

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import TINY
from numpy.typing import NDArray
from processes import launch
from safetensors.numpy import load_file
from scipy import stats

from pipeline.compare import read
from pipeline.data import shards
from pipeline.errors import ConfigError
from pipeline.learning.statistics import mcnemar, paired_t, spread

WORDS = [*TINY, "run.trackers=[]", "train.select=last"]
FIRST = 3  # of the seeds; it learns less than the next


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two seeds of the tiny experiment were run, and two of one that learns more slowly and validates on more images."""
    folder = tmp_path_factory.mktemp("studied")
    ended = launch(folder, ["seeds", "2", *WORDS, f"train.seed={FIRST}"])
    assert ended.code == 0, ended.output
    (folder / "said").write_text(ended.output)
    assert launch(folder, ["seeds", "2", *WORDS, f"train.seed={FIRST}", "train.lr=0.02", "data.validation=0.2", "run.name=slow"]).code == 0
    return folder


def images_and_labels(run: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    manifest = json.loads((run / "prepare/manifest.json").read_text())["result"]
    read = shards.read([run / "prepare" / name for name in manifest["shards"][split]], tuple(manifest["shape"]), len(manifest["classes"]))
    return np.concatenate(read.images), read.labels


def exported(run: Path, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "export/model.onnx", providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    return np.asarray(logits), np.asarray(probabilities)


def metrics(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "evaluate/metrics.json").read_text()))


def results(folder: Path, name: str = "tiny") -> dict[str, Any]:
    return dict(json.loads((folder / "runs" / f"{name}-seeds" / "seeds.json").read_text()))


def test_predictions_are_those_of_the_exported_model_in_the_order_of_the_split(studied: Path) -> None:
    run = studied / f"runs/tiny-seeds/seed-{FIRST}"
    kept = load_file(run / "evaluate/predictions.safetensors")
    assert len(kept) == 8
    for split in ("validation", "test"):
        images, labels = images_and_labels(run, split)
        _, probabilities = exported(run, images)
        np.testing.assert_array_equal(kept[f"{split}.labels"], labels)
        np.testing.assert_array_equal(kept[f"{split}.predicted"], probabilities.argmax(1))
        np.testing.assert_allclose(kept[f"{split}.probabilities"], probabilities, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(kept[f"{split}.confidence"], kept[f"{split}.probabilities"].max(1))
        assert metrics(run)[split]["accuracy"] == np.mean(kept[f"{split}.predicted"] == labels)


@pytest.mark.parametrize("batch", [20, 1], ids=["batches of both", "batches of one image, of the one or the other"])
def test_predictions_of_several_processes_are_those_of_one(studied: Path, tmp_path: Path, batch: int) -> None:
    shutil.copytree(studied / "artifacts", tmp_path / "artifacts", ignore=shutil.ignore_patterns("evaluate"))
    ended = launch(tmp_path, ["evaluate", *WORDS, f"train.seed={FIRST}", f"run.eval_batch_size={batch}"], processes=2)
    assert "train: fresh" in ended.output
    one = load_file(studied / f"runs/tiny-seeds/seed-{FIRST}/evaluate/predictions.safetensors")
    two = load_file(tmp_path / "runs/tiny/evaluate/predictions.safetensors")
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4 if one[name].dtype == np.float32 else 0)


def test_views_are_measured_besides_and_change_nothing_else(studied: Path) -> None:
    ended = launch(studied, ["evaluate", *WORDS, f"train.seed={FIRST}", "evaluate.views=[mirror]", "run.name=views"])
    run = studied / f"runs/tiny-seeds/seed-{FIRST}"
    plain, found = metrics(run), metrics(studied / "runs/views")
    assert {name: found[name] for name in plain} == plain
    images, labels = images_and_labels(run, "test")
    logits = exported(run, images)[0] + exported(run, np.ascontiguousarray(images[..., ::-1]))[0]
    assert found["test_views"]["accuracy"] == np.mean(logits.argmax(1) == labels)
    of_labels = (logits / 2)[np.arange(len(labels)), labels]
    loss = np.mean(np.log(np.exp(logits / 2).sum(1)) - of_labels)
    assert found["test_views"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert abs(found["test_views"]["loss"] - plain["test"]["loss"]) > 1e-3
    assert set(found) - set(plain) == {"test_views", "validation_views"}
    assert f"with views {found['test_views']['accuracy']:.4f}" in ended.output
    assert "mean of views" in (studied / "runs/views/report/index.html").read_text()


def test_a_validation_in_training_has_the_scores_of_the_evaluation(studied: Path) -> None:
    run = studied / f"runs/tiny-seeds/seed-{FIRST}"
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("loss", "accuracy", "top5", "balanced_accuracy", "macro_f1"):
        assert last[f"validation/{name}"] == metrics(run)["validation"][name]


def test_a_seed_after_another_is_an_ordinary_run(studied: Path, tmp_path: Path) -> None:
    assert launch(tmp_path, ["evaluate", *WORDS, f"train.seed={FIRST + 1}"]).code == 0
    folders = studied / f"runs/tiny-seeds/seed-{FIRST + 1}", tmp_path / "runs/tiny"
    for stage, name in (("train", "weights.safetensors"), ("train", "metrics.jsonl"), ("evaluate", "predictions.safetensors")):
        one, two = (json.loads((folder / stage / "manifest.json").read_text()) for folder in folders)
        assert one["reasons"] == two["reasons"]
        assert one["outputs"][name] == two["outputs"][name]


def test_seeds_end_with_a_table_of_each_and_their_mean_deviation_and_interval(studied: Path) -> None:
    found, said = results(studied), (studied / "said").read_text()
    accuracies = [seed["test_accuracy"] for seed in found["seeds"]]
    assert [seed["seed"] for seed in found["seeds"]] == [FIRST, FIRST + 1]
    low, high = found["test_accuracy"]["interval"]
    assert re.search(rf"^mean .* {np.mean(accuracies):.4f} ", said, re.MULTILINE)
    assert re.search(rf"^std .* {np.std(accuracies, ddof=1):.4f} ", said, re.MULTILINE)
    assert re.search(rf"^95 % .* {low:.4f} to {high:.4f} ", said, re.MULTILINE)


def test_seeds_again_find_all_fresh(studied: Path) -> None:
    before = results(studied)
    ended = launch(studied, ["seeds", "2", *WORDS, f"train.seed={FIRST}"])
    assert ended.output.count(": fresh") == 8
    assert results(studied) == before


def test_seeds_that_are_stopped_go_on(studied: Path, tmp_path: Path) -> None:
    second = [(studied / f"runs/tiny-seeds/seed-{FIRST + 1}" / stage).resolve().name for stage in ("train", "evaluate", "export")]
    shutil.copytree(studied / "artifacts", tmp_path / "artifacts", ignore=shutil.ignore_patterns(*second))
    words = ["seeds", "3", *TINY, "train.select=last", f"train.seed={FIRST}"]
    stopped = launch(tmp_path, words, processes=2, stop_at=5)
    assert stopped.code == 75, stopped.output
    states = [json.loads((tmp_path / f"runs/tiny-seeds/seed-{seed}/status.json").read_text())["state"] for seed in (FIRST, FIRST + 1)]
    assert states == ["done", "stopped"]
    assert not (tmp_path / f"runs/tiny-seeds/seed-{FIRST + 2}").exists()
    words[1] = "2"
    ended = launch(tmp_path, words, processes=2)
    assert ended.code == 0, ended.output
    assert "goes on where it stopped" in ended.output
    for one, two in zip(results(studied)["seeds"], results(tmp_path)["seeds"], strict=True):
        assert (one["seed"], one["test_accuracy"]) == (two["seed"], two["test_accuracy"])


def test_a_seed_that_fails_is_named_and_the_others_still_run(studied: Path) -> None:
    scores = {seed["seed"]: seed["test_accuracy"] for seed in results(studied)["seeds"]}
    assert scores[FIRST] < scores[FIRST + 1]
    demanded = [f"evaluate.min_accuracy={scores[FIRST + 1]}", "run.name=strict"]
    ended = launch(studied, ["seeds", "2", *WORDS, f"train.seed={FIRST}", *demanded], processes=2)
    assert ended.code == 4
    assert f"seed {FIRST} failed: test accuracy {scores[FIRST]:.4f} is below" in ended.output.splitlines()[-2]
    found = results(studied, "strict")
    assert ([seed["seed"] for seed in found["seeds"]], [seed["seed"] for seed in found["failed"]]) == ([FIRST + 1], [FIRST])
    assert json.loads((studied / f"runs/strict-seeds/seed-{FIRST}/status.json").read_text())["exit_code"] == 4


def test_what_would_befall_each_seed_ends_them_all(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/prepare").write_text("a file where a folder should be")
    ended = launch(tmp_path, ["seeds", "2", *WORDS])
    assert ended.code == 1
    assert ended.output.count("seed ") == 1


@pytest.mark.parametrize("count", ["0", "-1", "x.yaml", "1.5"])
def test_seeds_begin_with_how_many(tmp_path: Path, count: str) -> None:
    ended = launch(tmp_path, ["seeds", count])
    assert ended.code == 2
    assert "Traceback" not in ended.output


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.91, 0.94, 0.93]
    mean = sum(values) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    t = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # the quantile for two degrees of freedom, in closed form
    found = spread(values)
    assert found.interval is not None
    assert found.n == 3
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.std == pytest.approx(std, rel=1e-12)
    assert found.interval == pytest.approx((mean - t * std / math.sqrt(3), mean + t * std / math.sqrt(3)), rel=1e-12)


def test_one_value_has_no_spread() -> None:
    found = spread([0.5])
    assert (found.mean, found.std, found.interval) == (0.5, None, None)


@pytest.mark.parametrize(("first", "second"), [(3, 11), (11, 3), (0, 4), (5, 5), (0, 0)])
def test_mcnemar_counts_coins(first: int, second: int) -> None:
    found, count, images = mcnemar(first, second, 100), first + second, 100
    tail = sum(math.comb(count, k) for k in range(min(first, second) + 1)) / 2**count
    assert found.p == pytest.approx(min(1, 2 * tail), rel=1e-12)
    assert found.mean == (second - first) / images
    shares = np.array([images - count, first, second, 0]) + 0.5  # Agresti and Min's table of four cells
    shares /= shares.sum()
    centre = shares[2] - shares[1]
    half = 1.959963984540054 * math.sqrt((shares[1] + shares[2] - centre**2) / (images + 2))
    assert found.interval == pytest.approx((centre - half, centre + half), rel=1e-12)


def test_the_paired_t_test_looks_at_differences_alone() -> None:
    first, second = [0.90, 0.80, 0.70], [0.92, 0.81, 0.74]
    found = paired_t(first, second)
    differences = np.subtract(second, first)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-9)  # two degrees of freedom, in closed form
    assert found.p == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-9)
    assert found.mean == pytest.approx(differences.mean(), rel=1e-12)
    assert found.interval == spread([b - a for a, b in zip(first, second, strict=True)]).interval


@pytest.mark.parametrize(("second", "p"), [([0.5, 0.75], 1.0), ([0.75, 1.0], 0.0)])
def test_seeds_that_differ_by_the_same_are_no_chance(second: Sequence[float], p: float) -> None:
    assert paired_t([0.5, 0.75], second).p == p


def test_runs_are_compared_by_what_differs_and_image_by_image(studied: Path) -> None:
    names = [f"runs/{name}-seeds/seed-{FIRST}" for name in ("tiny", "slow")]
    ended = launch(studied, ["compare", *names, "--out", "pictures/two.png"])
    assert ended.code == 0, ended.output
    assert ended.output.startswith(f"runs\n  1  {names[0]}\n  2  {names[1]}\n\nconfiguration\n")
    differences = ended.output[ended.output.index("configuration") : ended.output.index("results")].splitlines()[1:]
    assert [line.split() for line in differences if line] == [["1", "2"], ["data.validation", "0.1", "0.2"], ["train.lr", "0.05", "0.02"]]
    assert all(len(line) <= 80 for line in ended.output.splitlines())
    summaries = [json.loads((studied / name / "summary.json").read_text()) for name in names]
    for measure, title, best in (("test_accuracy", "test accuracy", max), ("test_loss", "test loss", min)):
        scores = [summary[measure] for summary in summaries]
        marked = [re.escape(f"{score:.4f}" + " *" * (score == best(scores))) for score in scores]
        assert re.search(rf"^  {title} +{marked[0]} +{marked[1]}$", ended.output, re.MULTILINE)
    kept = [load_file(studied / name / "evaluate/predictions.safetensors") for name in names]
    rights = [found["test.labels"] == found["test.predicted"] for found in kept]
    only = [int((a & ~b).sum()) for a, b in (rights, rights[::-1])]
    assert only[0] != only[1]
    told = (
        f"{mcnemar(only[0], only[1], 57)}\n    McNemar's exact test: of 57 images run 1 alone is right on {only[0]}, run 2 on {only[1]}\n"
    )
    assert f"\n  2  {names[1]}\n    {told}" in ended.output
    with PIL.Image.open(studied / "pictures/two.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10  # something is drawn


def test_folders_of_seeds_are_compared_by_their_common_seeds(studied: Path) -> None:
    assert launch(studied, ["seeds", "1", *WORDS, f"train.seed={FIRST}", "run.name=one"]).code == 0
    ended = launch(studied, ["compare", "runs/tiny-seeds", "runs/slow-seeds", "runs/one-seeds"])
    assert ended.code == 0, ended.output
    scores = [[seed["test_accuracy"] for seed in results(studied, name)["seeds"]] for name in ("tiny", "slow")]
    assert f"  2  runs/slow-seeds\n    {paired_t(*scores)}\n    paired t-test over 2 common seeds\n" in ended.output
    assert "  3  runs/one-seeds\n    no paired test is possible: it takes two common seeds or more, there are 1\n" in ended.output
    assert all(len(line) <= 80 for line in ended.output.splitlines())
    assert re.search(rf"train.seed +{FIRST}, {FIRST + 1} +{FIRST}, {FIRST + 1} +{FIRST}$", ended.output, re.MULTILINE)
    assert f"{np.mean(scores[0]):.4f} ± {np.std(scores[0], ddof=1):.4f}" in ended.output
    assert (studied / "comparison.png").is_file()


def test_other_test_images_allow_no_paired_test_but_all_the_rest(studied: Path) -> None:
    launch(studied, ["prepare", *WORDS, "data.source.test=50", "run.name=other"])
    for kept in (studied / f"runs/tiny-seeds/seed-{FIRST}").iterdir():  # as if the rest had been made of these images
        if kept.name not in ("prepare", "config.yaml", "status.json", "summary.json"):
            (studied / "runs/other" / kept.name).symlink_to(kept)
    summary = json.loads((studied / f"runs/tiny-seeds/seed-{FIRST}/summary.json").read_text())
    summary["fingerprints"]["prepare"] = (studied / "runs/other/prepare").resolve().name
    (studied / "runs/other/summary.json").write_text(json.dumps(summary))
    ended = launch(studied, ["compare", f"runs/tiny-seeds/seed-{FIRST}", "runs/other"])
    assert ended.code == 0, ended.output
    assert "accuracy" in ended.output
    assert "  2  runs/other\n    tested on other images: no paired test is possible\n" in ended.output
    assert re.search(r"data.source.test +57 +50", ended.output)


def test_what_cannot_be_compared_is_said_in_one_line(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(studied, ["train", *WORDS, f"train.seed={FIRST}", "run.name=half"])
    launch(studied, ["run", *WORDS, f"train.seed={FIRST}", "run.name=changed"])
    launch(studied, ["train", *WORDS, f"train.seed={FIRST + 1}", "run.name=changed"])
    monkeypatch.chdir(studied)
    for folder, told in {
        "runs": "runs is not the folder of a run, nor one of seeds",
        "nowhere": "nowhere is not the folder of a run",
        "runs/half": "runs/half: not finished, it is done and there is no result yet",
        "runs/changed": "runs/changed: not finished, its result is that of an earlier configuration",
    }.items():
        with pytest.raises(ConfigError, match=told):
            read(Path(folder))
    ended = launch(studied, ["compare", "runs/tiny"])
    assert (ended.code, ended.output) == (2, "pipeline: compare: give the folders of two runs or more\n")


def test_a_seed_that_is_not_finished_is_left_out_by_name(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(studied / "runs/slow-seeds", studied / "runs/broken-seeds", symlinks=True)
    (studied / f"runs/broken-seeds/seed-{FIRST}/status.json").write_text('{"state": "stopped"}')
    (studied / f"runs/broken-seeds/seed-{FIRST}/summary.json").unlink()
    monkeypatch.chdir(studied)
    found = read(Path("runs/broken-seeds"))
    assert list(found.runs) == [FIRST + 1]
    assert found.left_out == [f"runs/broken-seeds/seed-{FIRST} is left out: not finished, it is stopped and there is no result yet"]


def test_seeds_are_not_to_be_one_run_of_wandb(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["seeds", "2", *TINY, "run.trackers=[wandb]"], environment={"WANDB_RUN_ID": "one"})
    assert ended.code == 2
    assert ended.output == "pipeline: several seeds are several runs, but WANDB_RUN_ID names one of W&B; unset it, or add run.trackers=[]\n"
