"""W&B mirrors the record through its real client, offline here, and can fail without harm."""

import fcntl
import functools
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from cluster import until
from conftest import TINY, Run
from processes import Ended, begin, below, launch
from tracking import configuration, described, exit_codes, kill_all, lives, of_record, points, run_id, settled, steps, summary

from bench.faults import nonfinite
from pipeline.runtime.aside import LOCK, Aside
from pipeline.runtime.origin import origin
from pipeline.runtime.trackers.wandb import _has_key, evaluation, file

WANDB = "run.trackers=[wandb]"


@dataclass(frozen=True)
class Whole:
    """A run of all stages, undisturbed."""

    folder: Path
    ended: Ended

    @property
    def path(self) -> Path:
        (path,) = lives(self.folder)
        return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    recipe = ["train.metric=loss", "train.epochs=6", "train.schedule=constant", "train.lr=0.2"]  # which is best before it ends
    return Whole(folder, launch(folder, ["run", *TINY, WANDB, *recipe, "--json"]))


def test_everything_reaches_an_offline_run_without_a_prompt(whole: Whole) -> None:
    assert whole.ended.code == 0, whole.ended.output
    assert "wandb: offline, run" in whole.ended.output
    mirrored = {row["step"]: row["train/loss"] for row in file.history(whole.path) if "train/loss" in row}
    record = [json.loads(line) for line in (whole.folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert mirrored == {line["step"]: line["train/loss"] for line in record if "train/loss" in line}
    assert points(whole.path) == of_record(whole.folder)
    assert all("images/s" in row for row in file.history(whole.path) if "train/loss" in row)
    assert exit_codes(whole.path) == [0]


def test_results_and_the_best_values_are_in_the_summary(whole: Whole) -> None:
    told = summary(whole.path)
    validations = [row for row in file.history(whole.path) if "validation/loss" in row]
    assert told["test/accuracy"] == whole.ended.summary["test_accuracy"]
    assert told["best/validation/accuracy"] == max(row["validation/accuracy"] for row in validations)
    assert told["best/validation/loss"] == min(row["validation/loss"] for row in validations)


def test_the_run_says_what_it_is_how_it_is_done_and_by_which_code(whole: Whole) -> None:
    assert described(whole.path).display_name == "tiny"
    assert [*described(whole.path).tags] == ["synthetic", "lenet", "sgd"]
    config = configuration(whole.path)
    assert config["train"]["lr"] == 0.2
    environment = config["environment"]
    assert (environment["world_size"], environment["torch"], environment["commit"]) == (1, version("torch"), origin().facts.get("commit"))
    links = [path for path in (whole.folder / "runs/tiny").iterdir() if path.name in ("prepare", "train", "evaluate", "export")]
    assert config["fingerprints"] == {link.name: link.resolve().name for link in links}


def test_its_curves_are_over_the_steps_of_training(whole: Whole) -> None:
    defined = [record.metric for record in file.records(whole.path) if record.WhichOneof("record_type") == "metric"]
    assert [(metric.name or metric.glob_name, metric.step_metric) for metric in defined] == [("step", ""), ("*", "step")]


def test_runs_of_several_seeds_are_a_group(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, "run.folder=runs/tiny-seeds", "run.name=seed-1", until="train").code == 0
    settled(tmp_path)
    (path,) = tmp_path.glob("runs/tiny-seeds/seed-1/wandb/offline-run-*/*.wandb")
    assert (described(path).display_name, described(path).run_group) == ("tiny-seed-1", "tiny")


def test_the_predictions_are_shown_with_their_images(whole: Whole) -> None:
    names = {name.split(".")[0] for row in file.history(whole.path) for name in row}
    assert {"curves", "confusion", "samples", "predictions", "confusion_matrix_table"} <= names
    (table,) = (whole.path.parent / "files/media/table").glob("predictions_*")
    content = json.loads(table.read_text())
    assert content["columns"] == ["image", "label", "predicted", "confidence", "correct"]
    assert len(content["data"]) == 57, "all of so few"
    correct = [row[-1] for row in content["data"]]
    assert correct == sorted(correct), "mistakes first"
    surest = [row[3] for row in content["data"] if not row[-1]]
    assert surest == sorted(surest, reverse=True)


def test_artifacts_are_where_they_were_made_and_name_what_they_are_made_from(whole: Whole) -> None:
    made = [a for a in file.artifacts(whole.path) if a.type != "run_table"]
    found = {(a.name, a.type, *(alias for alias in sorted(a.aliases) if alias != "latest")) for a in made}
    models = {("tiny", "model", "best"), ("tiny", "model", "last")}
    assert found == {("synthetic-data", "dataset"), *models, ("tiny-report", "report"), ("tiny-export", "export")}
    (data,) = (a for a in made if a.type == "dataset")
    assert all(entry.ref.startswith("file:///") for entry in data.manifest.contents), "data are never copied"
    assert {a.type for a in made if a.use_after_commit} == {"dataset", "model"}, "inputs"
    sent = [entry for a in made if a.type != "dataset" for entry in a.manifest.contents]
    assert all(Path(entry.local_path).is_relative_to((whole.folder / "artifacts").absolute()) for entry in sent), "nor is what was made"
    metadata = json.loads(next(a for a in made if "best" in a.aliases).metadata)
    assert {"step", "loss", "precision", "classes", "fingerprint", "digest"} <= metadata.keys()


def test_a_restart_is_the_same_run_and_tells_no_step_twice(run: Run, tmp_path: Path) -> None:
    stops = WANDB
    assert run(stops, until="train", stop_at=20).code == 75
    assert run(stops, until="train").code == 0
    first, second = lives(tmp_path)
    assert run_id(first) == run_id(second)
    assert steps(first, second) == [*range(5, 61, 5), 61]


@pytest.mark.soak
def test_what_sends_it_sends_what_each_life_has_told(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train", stop_at=20).code == 75
    (told,) = re.findall(r"^  wandb +wandb sync (\S+)$", run(WANDB).output, re.MULTILINE)
    assert sorted(tmp_path.glob(told)) == [path.parent for path in lives(tmp_path)]
    assert len(lives(tmp_path)) == 2


def test_going_back_to_a_checkpoint_it_tells_no_step_twice(run: Run, tmp_path: Path) -> None:
    case = nonfinite.Case("", "loss", math.nan, range(27, 28), 1, 0, "")
    ended = run(WANDB, "train.nonfinite=restore", until="train", before=functools.partial(nonfinite.breaks, case=case))
    assert "going on from step-000000020" in ended.output
    (path,) = lives(tmp_path)
    assert steps(path) == [*range(5, 61, 5), 61]


def test_another_recipe_is_another_run(run: Run, tmp_path: Path) -> None:
    run(WANDB, until="train")
    run(WANDB, "train.lr=0.01", until="train")
    assert len({run_id(path) for path in lives(tmp_path)}) == 2


def test_without_its_server_it_goes_on_offline_and_keeps_every_point(run: Run, tmp_path: Path) -> None:
    online = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    ended = launch(tmp_path, ["train", *TINY, WANDB], environment=online)
    assert ended.code == 0, ended.output
    assert any(said in ended.output for said in ("connection refused; going on offline", "its service has not answered yet"))
    assert steps(*lives(tmp_path)) == [*range(5, 61, 5), 61]


@pytest.mark.parametrize("way", ["dies", "stops", "cannot be started"])
def test_whatever_becomes_of_the_process_aside_the_training_goes_on_and_says_so(run: Run, tmp_path: Path, way: str) -> None:
    whole = run(until="train", in_folder="whole")
    broken = run(WANDB, until="train", in_folder="broken", before=functools.partial(_hinder, way))
    assert (whole.code, broken.code) == (0, 0), broken.output
    said = {"dies": "their process ended with code -9", "stops": "not all was told within 1 s", "cannot be started": "No such file"}[way]
    assert [line.count(said) for line in broken.output.splitlines() if line.startswith("trackers: ")] == [1]
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")


def _hinder(way: str, _: int) -> None:
    """The process that trains would wait no longer than a second."""
    from pipeline.runtime import aside

    aside.PATIENCE = 1.0
    if way == "cannot be started":
        sys.executable = "/nowhere/python"
    else:
        number = signal.SIGKILL if way == "dies" else signal.SIGSTOP
        _at_step_20(lambda: _send(number, *below(os.getpid())))


def test_a_process_aside_that_takes_nothing_is_given_up(run: Run, tmp_path: Path) -> None:
    ended = run(WANDB, "run.log_every=1", until="train", before=_with_little_room)
    assert ended.code == 0, ended.output
    assert "trackers: their process takes nothing; going on without them" in ended.output


def _with_little_room(rank: int) -> None:
    from pipeline.runtime import aside

    aside.ROOM = -1


def test_what_is_told_is_told_in_spite_of_a_signal_to_all(run: Run, tmp_path: Path) -> None:
    ended = run(WANDB, until="train", before=_interrupt_all)
    assert ended.code == 75, ended.output
    (path,) = lives(tmp_path)
    assert steps(path) == [5, 10, 15, 20]
    assert exit_codes(path) == [75]


def _interrupt_all(_: int) -> None:
    """As the terminal does at Ctrl-C, at step 20."""
    _at_step_20(lambda: _send(signal.SIGINT, *below(os.getpid()), os.getpid()))


def _send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _at_step_20(then: Callable[[], object]) -> None:
    from pipeline.runtime.mirror import Trackers

    log = Trackers.log

    def acting(self: Trackers, step: int, values: Mapping[str, float]) -> None:
        log(self, step, values)
        if step == 20:
            then()

    Trackers.log = acting  # type: ignore[method-assign]


def test_killed_and_started_again_at_once_it_tells_every_step_once(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train", kill_at=30).code == -signal.SIGKILL
    assert run(WANDB, until="train").code == 0
    found = lives(tmp_path)
    assert len({run_id(path) for path in found}) == 1
    assert points(*found) == of_record(tmp_path)


def test_what_is_said_when_nobody_listens_any_more_is_in_the_log(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train", kill_at=5).code == -signal.SIGKILL
    (path,) = lives(tmp_path)
    assert f"wandb: offline, run {run_id(path)}" in (tmp_path / "runs/tiny/logs/trackers.log").read_text()


def test_lives_that_begin_in_the_same_second_know_of_each_other(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train", stop_at=20).code == 75
    (first,) = lives(tmp_path)
    first.parent.rename(f"{first.parent}-1")  # as W&B calls the second of two
    assert run(WANDB, until="train").code == 0
    assert points(*lives(tmp_path)) == of_record(tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_with_its_process_aside_and_service_killed_at_any_moment_every_point_is_told_once(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    words = ["train", *TINY, WANDB, "run.log_every=2", "train.epochs=100", "train.validate_every=4"]
    for _ in range(2 + seed):
        (process,) = begin(tmp_path, words)
        time.sleep(draw.uniform(0.5, 2.5))
        kill_all(process, draw)
    assert launch(tmp_path, words).code == 0
    assert points(*lives(tmp_path)) == of_record(tmp_path)


@pytest.mark.soak
def test_while_an_earlier_life_tells_it_is_said_that_this_one_will(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train").code == 0
    settled(tmp_path)
    (lock,) = tmp_path.glob(f"artifacts/train/*/{LOCK}")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ended = run(WANDB, until="evaluate")
    assert ended.code == 0
    assert "trackers: an earlier life tells them yet; this one follows it" in ended.output
    until(lambda: len(lives(tmp_path)) == 2, 60, lambda: "it did not")


def test_what_a_file_lacks_that_was_cut_short_is_told_by_the_next_life(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, until="train", stop_at=40).code == 75
    (first,) = lives(tmp_path)
    while len(steps(first)) > 4:
        os.truncate(first, first.stat().st_size - 100)
    assert run(WANDB, until="train").code == 0
    assert points(*lives(tmp_path)) == of_record(tmp_path)


def test_an_evaluation_alone_goes_on_with_the_run_and_tells_what_it_lacks(run: Run, tmp_path: Path) -> None:
    assert run(until="train").code == 0
    assert run(WANDB).code == 0
    (path,) = lives(tmp_path)
    assert points(path) == of_record(tmp_path)
    assert {a.type for a in file.artifacts(path)} >= {"dataset", "model", "report", "export"}
    run(WANDB, "--force=evaluate")
    again = lives(tmp_path)[-1]
    assert (run_id(again), steps(again), file.artifacts(again)) == (run_id(path), [], []), "all was told"


def test_what_is_fresh_is_told_once(run: Run, tmp_path: Path) -> None:
    assert run(until="train").code == 0
    for _ in range(3):
        assert run(WANDB, until="train").code == 0
        (path,) = lives(tmp_path)
        assert points(path) == of_record(tmp_path)


def test_the_run_of_a_sweep_is_the_one_that_its_agent_has_begun(tmp_path: Path) -> None:
    for trial in ("abcd0001", "abcd0002"):
        environment = {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": trial, "WANDB_PROJECT": "mine"}
        assert launch(tmp_path, ["train", *TINY, WANDB], environment=environment).code == 0
    first, second = lives(tmp_path, "sweep-sweep/*")
    assert (run_id(first), run_id(second)) == ("abcd0001", "abcd0002")
    assert described(second).project == "mine"
    assert points(first) == points(second) == of_record(tmp_path, "sweep-sweep/tiny-abcd0001"), "though it has been trained before"


def test_curves_of_a_class_against_the_others_come_with_the_probabilities(whole: Whole) -> None:
    tables = {path.name.partition("_table_")[0] for path in (whole.path.parent / "files/media/table").iterdir()}
    assert {"roc", "precision_recall", "confusion_matrix"} <= tables


def test_the_surest_mistakes_are_shown_first_then_others_from_all_over_the_split() -> None:
    labels, predicted = np.zeros(1000, np.int64), (np.arange(1000) % 5 == 0).astype(np.int64)
    rows = evaluation.chosen(labels, predicted, np.linspace(0, 1, 1000, dtype=np.float32))
    assert rows[:100].tolist() == [*range(995, 495, -5)]
    assert len({*rows.tolist()}) == len(rows) == 200
    assert (rows[100], rows[-1]) == (0, 999)


def test_disabled_it_leaves_nothing(run: Run, tmp_path: Path) -> None:
    ended = run("run.trackers=[{name: wandb, mode: disabled}]", until="evaluate")
    assert ended.code == 0
    assert "without it" not in ended.output
    assert lives(tmp_path) == []


@pytest.mark.parametrize("way", ["disabled before", "told in a folder that is gone"])
def test_what_is_fresh_is_told_where_there_is_nothing_of_it(run: Run, tmp_path: Path, way: str) -> None:
    assert run("run.trackers=[{name: wandb, mode: disabled}]" if "disabled" in way else WANDB, until="train").code == 0
    if lives(tmp_path):
        shutil.rmtree(tmp_path / "runs")
    assert run(WANDB, until="train").code == 0
    (path,) = lives(tmp_path)
    assert points(path) == of_record(tmp_path)


@pytest.mark.parametrize(("mode", "said"), [("dryrun", "wandb: offline, run "), ("ofline", "did you mean 'offline'?; going on without it")])
def test_a_mode_is_known_by_its_old_name_and_a_misspelt_one_is_told_in_a_line(run: Run, mode: str, said: str) -> None:
    ended = run(WANDB, until="train", environment={"WANDB_MODE": mode})
    assert ended.code == 0
    assert said in next(line for line in ended.output.splitlines() if line.startswith("wandb: "))


@pytest.mark.parametrize("variable", ["HOME", "NETRC"])
def test_a_key_is_found_where_the_client_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    kept = tmp_path / ".netrc"
    kept.write_text(f"machine api.wandb.ai login user password {'0' * 40}")
    kept.chmod(0o644)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not _has_key()
    monkeypatch.setenv(variable, str(kept if variable == "NETRC" else tmp_path))
    assert _has_key()


def test_the_process_that_trains_never_imports_the_client(run: Run, tmp_path: Path) -> None:
    assert run(WANDB, before=_without_client).code == 0
    (path,) = lives(tmp_path)
    assert steps(path) == [*range(5, 61, 5), 61]


def _without_client(_: int) -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]


def test_a_tracker_that_cannot_write_costs_no_step(run: Run, tmp_path: Path) -> None:
    whole = run(until="train", in_folder="whole")
    (tmp_path / "broken/runs/tiny").mkdir(parents=True)
    (tmp_path / "broken/runs/tiny/wandb").write_text("a file where its folder should go")
    broken = run(WANDB, until="train", in_folder="broken")
    assert (whole.code, broken.code) == (0, 0)
    assert "going on without it" in broken.output
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")


def test_a_mark_that_cannot_be_written_costs_no_other_tracker_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "sitecustomize.py").write_text(FULL)
    ended = run("run.trackers=[tensorboard, wandb]", until="train", before=_with_a_full_disk)
    assert ended.code == 0
    assert "No space left on device" in next(line for line in ended.output.splitlines() if line.startswith("tensorboard: "))
    (path,) = lives(tmp_path)
    assert exit_codes(path) == [0]


FULL = """
from pathlib import Path
opened = Path.open
def full(self, *how, **also):
    if self.name == "trackers.json" and how == ("r+",):
        raise OSError(28, "No space left on device", str(self))
    return opened(self, *how, **also)
Path.open = full
"""


def _with_a_full_disk(_: int) -> None:
    sys.path.insert(0, "full")  # of which the process aside is told


def test_a_process_aside_that_cannot_be_begun_leaves_nothing_open(tmp_path: Path) -> None:
    before = [*Path("/proc/self/fd").iterdir()]
    (tmp_path / "logs").write_text("a file where its folder should go")
    with pytest.raises(OSError, match="File exists"):
        Aside(tmp_path, tmp_path / "logs" / "trackers.log")
    with pytest.raises(OSError, match="No such file"):
        Aside(tmp_path / "nowhere", tmp_path / "trackers.log")
    assert [*Path("/proc/self/fd").iterdir()] == before


def weights(folder: Path) -> bytes:
    return (folder / "runs/tiny/train/weights.safetensors").read_bytes()
