"""`pipeline runs` tells how each run of a folder stands, whatever else is in that folder."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run
from processes import launch

from pipeline import runs_table
from pipeline.runs import Run as Found
from pipeline.runs import flat, read
from pipeline.runtime import claims


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny experiment was run, to its end."""
    folder = tmp_path_factory.mktemp("made")
    assert launch(folder, ["run", *TINY]).code == 0
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of it: `runs/tiny`, and its artifacts."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "runs"


def another(runs: Path, name: str, **status: object) -> Path:
    """The tiny run once more under another name, with another status."""
    place = runs / name
    place.mkdir(parents=True)
    for link in (path for path in (runs / "tiny").iterdir() if path.is_symlink()):
        (place / link.name).symlink_to(os.path.relpath(link.resolve(), place))
    shutil.copy(runs / "tiny/config.yaml", place)
    (place / "status.json").write_text(
        json.dumps({"state": "done", "at": "2026-01-01T00:00:00+0000", "exit_code": 0, "message": "", **status})
    )
    return place


def one(folder: Path, name: str) -> Found:
    return next(run for run in read(folder).found if run.name == name)


def test_a_finished_run_is_told_as_its_summary_has_it(runs: Path) -> None:
    summary, run = json.loads((runs / "tiny/summary.json").read_text()), one(runs, "tiny")
    assert (run.state, run.exit_code, run.message, run.report) == ("done", 0, "", True)
    assert (run.step, run.steps) == (summary["steps"], 61)
    assert (run.best, run.test_accuracy) == (summary["validation_accuracy"], summary["test_accuracy"])
    assert (run.seconds, run.images_per_second) == (summary["training_seconds"], summary["images_per_second"])
    assert (run.device, run.world_size) == ("cpu", 1)
    assert (run.data, run.model, run.optimizer, run.lr, run.batch_size) == ("synthetic", "lenet", "sgd", 0.05, 12)


def test_a_run_that_failed_before_its_first_line_is_at_no_step(runs: Path) -> None:
    place = another(runs, "failed", state="failed", exit_code=4, message="the loss is nan at step 8")
    for link in ("train", "metrics.jsonl"):
        (place / link).unlink()
    run = one(runs, "failed")
    assert (run.step, run.steps) == (None, 61)
    assert all("None" not in line.plain for line in runs_table.table([run], 200))


def test_how_a_run_ended_is_told_with_its_code_and_message(runs: Path) -> None:
    another(runs, "ended", state="stopped", exit_code=75, message="stopped after step 20")
    run = one(runs, "ended")
    assert (run.state, run.exit_code, run.message) == ("stopped", 75, "stopped after step 20")


def test_a_run_is_running_while_its_process_lives_and_lost_after_it(runs: Path) -> None:
    place = another(runs, "going", state="running")
    claim = claims.take(place / ".run", place)
    assert isinstance(claim, claims.Claim)
    assert one(runs, "going").state == "running"
    claim.leave()
    assert one(runs, "going").state == "lost"


def test_a_killed_run_is_lost_and_what_it_had_reached_is_told(run: Run, tmp_path: Path) -> None:
    assert run("run.checkpoint_every=5", kill_at=30).code != 0
    found = one(tmp_path / "runs", "tiny")
    lines = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert (found.state, found.steps, found.test_accuracy) == ("lost", 61, None)
    assert found.step == lines[-1]["step"] > 0
    assert found.best == max(line["validation/accuracy"] for line in lines if "validation/accuracy" in line)
    assert found.device == "cpu"
    assert found.seconds


def test_the_test_accuracy_of_another_recipe_is_not_shown(run: Run, tmp_path: Path) -> None:
    run(until="evaluate")
    assert one(tmp_path / "runs", "tiny").test_accuracy is not None
    run("train.lr=0.01", until="train")
    assert one(tmp_path / "runs", "tiny").test_accuracy is None


def test_the_newest_is_first_and_what_belongs_together_stays_together(runs: Path) -> None:
    another(runs, "old", at="2026-03-01T00:00:00+0000")
    another(runs, "tiny-seeds/seed-0", at="2026-02-01T00:00:00+0000")
    another(runs, "tiny-seeds/seed-1", at="2026-04-01T00:00:00+0000")
    another(runs, "later in the west", at="2026-03-01T00:00:00-0500")
    names = [run.name for run in read(runs).found]
    assert names == ["tiny", "tiny-seeds/seed-1", "tiny-seeds/seed-0", "later in the west", "old"]


def test_what_is_broken_or_foreign_is_named_and_the_rest_is_told(runs: Path) -> None:
    (runs / "empty").mkdir()
    (runs / "elsewhere").symlink_to("/etc")
    (runs / "comparison.png").write_bytes(b"a picture")
    (another(runs, "no yaml") / "config.yaml").write_text("{[")
    (another(runs, "no sections") / "config.yaml").write_text("42")
    (another(runs, "no config") / "config.yaml").unlink()
    found = read(runs)
    assert [run.name for run in found.found] == ["tiny"]
    assert sorted(line.removeprefix(f"{runs}/") for line in found.left_out) == [
        "elsewhere is left out: it is a link, which is not followed",
        "empty is left out: there is no run in it",
        "no config is left out: it has no config.yaml",
        "no sections is left out: its config.yaml holds no sections",
        "no yaml is left out: its config.yaml is not YAML",
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"7", b'{"state": ["?"], "at": 5, "exit_code": "x"}', b"[" * 100_000, b'{"at": 1'])
def test_whatever_a_file_holds_the_list_is_told(runs: Path, content: bytes) -> None:
    place = another(runs, "strange")
    for link in ("metrics.jsonl", "train", "evaluate", "prepare"):
        (place / link).unlink()
    for name in ("status.json", "metrics.jsonl", "manifest.json", "timing.json", "timings.jsonl"):
        (place / name).write_bytes(content)
    found = read(runs)
    assert "tiny" in {run.name for run in found.found}
    assert len(found.found) + len(found.left_out) == 2
    list(runs_table.table(found.found, 80))
    json.dumps([run.facts() for run in found.found], allow_nan=False)


def test_a_name_that_is_no_text_is_told_nevertheless(runs: Path) -> None:
    (runs / "tiny").rename(os.fsdecode(bytes(runs) + b"/\xff\xfe"))
    assert [run.name for run in read(runs).found] == ["??"]


def test_a_link_to_somewhere_else_is_not_read(runs: Path) -> None:
    place = another(runs, "linked")
    (place / "metrics.jsonl").unlink()
    outside = runs.parent / "secret/metrics.jsonl"
    outside.parent.mkdir()
    outside.write_text('{"step": 99}\n')
    (place / "metrics.jsonl").symlink_to(outside)
    assert one(runs, "linked").step is None


@pytest.mark.parametrize("width", [30, 60, 80, 100, 140, 200])
def test_the_table_fits_the_terminal(runs: Path, width: int) -> None:
    another(runs, "x" * 25, state="failed", exit_code=4, message="the loss is nan at step 7: training has diverged; lower train.lr")
    another(runs, "數字", state="lost")
    another(runs, "tiny-seeds/seed-0")
    lines = list(runs_table.table(read(runs).found, width))
    assert len(lines) == 6
    assert max(line.cell_len for line in lines) <= width
    assert width < 60 or {line.plain.split()[0] for line in lines} == {"run", "tiny", "x" * 25, "數字", "tiny-seeds/", "seed-0"}


def test_elsewhere_it_is_plain_text_whole(runs: Path) -> None:
    message = "a message that is longer than any terminal is wide, " * 5
    another(runs, "\x1b[2Jclears the screen", state="failed", message=message)
    ended = launch(runs.parent, ["runs"])
    assert ended.code == 0
    assert "\x1b" not in ended.output
    assert message.strip() in ended.output


@pytest.mark.parametrize("colours", [True, False])
def test_on_a_terminal_the_state_has_a_colour_unless_it_is_not_wanted(runs: Path, colours: bool) -> None:
    environment = {**os.environ, "CI": "", "TERM": "xterm", "COLUMNS": "80"} | ({} if colours else {"NO_COLOR": "1"})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline", "runs", str(runs)]
    done = subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, check=False, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert ("\x1b[32mdone" in shown) == colours
    assert "done" in shown


def test_as_json_all_is_told(runs: Path) -> None:
    another(runs, "broken").joinpath("config.yaml").unlink()
    told = launch(runs.parent, ["runs", "--json"]).summary
    assert [run["name"] for run in told["runs"]] == ["tiny"]
    assert told["runs"][0]["test_accuracy"] == one(runs, "tiny").test_accuracy
    assert len(told["left_out"]) == 1


def test_without_the_folder_it_says_what_makes_one(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["runs"])
    assert ended.code == 2
    assert ended.output == "pipeline: runs is no folder of runs; `pipeline run` makes runs, or name another\n"


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert launch(tmp_path, ["runs"]).output == "runs: no runs yet; `pipeline run` makes the first\n"


def test_a_configuration_is_flat_as_overrides_are_written() -> None:
    tree = {"train": {"lr": 0.1, "model": {"name": "lenet", "kernel": 3}, "mix": []}, "run": {"name": "x"}}
    assert flat(tree) == {"train.lr": "0.1", "train.model": "lenet", "train.model.kernel": "3", "train.mix": "[]", "run.name": "x"}
