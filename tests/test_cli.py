"""The command line: quick to answer, and honest in its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster import until
from conftest import TINY, Run
from processes import launch

NO_TORCH = """
import sys
from pipeline.main import main
code = main(sys.argv[1:])
assert not {"torch", "rich"} & {*sys.modules}
sys.exit(code)
"""


def without_torch(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", NO_TORCH, *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("words", "code"), [(["config"], 0), (["status"], 0), (["run", "train.lrr=1"], 2), (["run", "x.yaml"], 2)])
def test_what_needs_no_torch_imports_none(tmp_path: Path, words: list[str], code: int) -> None:
    ended = without_torch(tmp_path, *words)
    assert ended.returncode == code, ended.stderr


def test_a_run_in_which_all_is_fresh_imports_no_torch(run: Run, tmp_path: Path) -> None:
    assert run("run.trackers=[]").code == 0
    again = without_torch(tmp_path, "run", *TINY, "run.trackers=[]")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": fresh") == 4


def test_help_names_every_command_and_exit_code() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from pipeline.main import main; main(['--help'])"], capture_output=True, text=True, check=True
    )
    for word in ("run", "prepare", "train", "evaluate", "export", "status", "config", "predict", "demo", "75", "130"):
        assert word in told.stdout


def test_config_prints_what_will_be_run(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["config", "train.lr=1e-3", "train.model=lenet"])
    resolved = yaml.safe_load(ended.output)
    assert resolved["train"]["lr"] == 0.001
    assert resolved["train"]["model"]["kernel"] == 5


def test_overrides_come_before_and_after_flags(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["config", "train.lr=0.1", "--data-dir", "elsewhere", "train.seed=3"])
    resolved = yaml.safe_load(ended.output)
    assert (resolved["data"]["root"], resolved["train"]["lr"], resolved["train"]["seed"]) == ("elsewhere", 0.1, 3)


@pytest.mark.parametrize("words", [["rnu"], ["run", "--jsno"], ["run", "train.lr"], []])
def test_a_mistake_in_the_command_ends_with_2(tmp_path: Path, words: list[str]) -> None:
    ended = launch(tmp_path, words)
    assert ended.code == 2
    assert "Traceback" not in ended.output


def test_a_stage_makes_what_it_needs_and_no_more(run: Run, tmp_path: Path) -> None:
    assert run(until="evaluate").code == 0
    assert sorted(p.name for p in (tmp_path / "artifacts").iterdir()) == ["evaluate", "prepare", "train"]


def test_the_run_folder_holds_what_a_person_opens(run: Run, tmp_path: Path) -> None:
    run()
    folder = tmp_path / "runs/tiny"
    for name in ("config.yaml", "status.json", "summary.json", "metrics.jsonl", "report/index.html", "export/model.onnx"):
        assert (folder / name).is_file(), name
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["lr"] == 0.05
    assert json.loads((folder / "summary.json").read_text())["seconds"].keys() == {"prepare", "train", "evaluate", "export"}


def test_a_folder_that_cannot_be_written_is_one_line_and_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/prepare").write_text("a file where a folder should be")
    ended = run("run.trackers=[]")
    assert ended.code == 1
    assert "Traceback" not in ended.output
    assert "pipeline: " in ended.output
    assert json.loads((tmp_path / "runs/tiny/status.json").read_text())["state"] == "failed"


def test_a_full_disk_is_one_line_and_what_was_there_stays(run: Run, tmp_path: Path) -> None:
    run("run.trackers=[]", until="train")
    command = f"ulimit -f 8; exec {sys.executable} -m pipeline.main " + " ".join(
        f"'{w}'" for w in ("train", *TINY, "run.trackers=[]", "train.seed=1")
    )
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith("pipeline: File too large")
    assert "train: fresh" in run("run.trackers=[]", until="train").output


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failure_while_preparing_ends_every_process(run: Run, tmp_path: Path, processes: int) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/prepare").write_text("a file where a folder should be")
    ended = run("run.trackers=[]", processes=processes)
    assert ended.codes == [1] * processes
    assert "File exists" in ended.output


def test_a_training_that_diverges_ends_with_a_word(run: Run) -> None:
    ended = run("train.lr=1e9", "train.schedule=constant", processes=2)
    assert ended.code == 4
    assert "training has diverged; lower train.lr" in ended.output
    assert "Traceback" not in ended.output


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in (*TINY, "run.trackers=[]"))
    subprocess.run(
        ["sh", "-c", f"{sys.executable} -m pipeline.main train {words} | head -n 1"], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads((tmp_path / "runs/tiny/status.json").read_text())["state"] == "done"


@pytest.mark.parametrize(("words", "code"), [(["prepare", *TINY], 0), (["run", "train.lrr=1"], 2)])
def test_streams_that_are_closed_change_nothing(tmp_path: Path, words: list[str], code: int) -> None:
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "pipeline", *words]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == code


def test_interrupted_before_there_is_anything_to_keep(tmp_path: Path) -> None:
    import os
    import signal

    from processes import begin

    (process,) = begin(tmp_path, ["prepare", *TINY, "data.source.train=300000", "run.trackers=[]"])
    output = tmp_path / "output.txt"
    until(lambda: output.exists() and "prepare" in output.read_text(), 60, lambda: "nothing was prepared")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert json.loads((tmp_path / "runs/tiny/status.json").read_text())["state"] == "stopped"


@pytest.mark.parametrize("word", ["evil\x1b[2J\npipeline: done.yaml", "run.name=x\x1b]0;title\x07\nrun.folder=/", "--a\rb"])
def test_a_terminal_obeys_nothing_that_is_said_of_a_name(tmp_path: Path, word: str) -> None:
    ended = launch(tmp_path, ["run", word])
    assert ended.code == 2
    assert ended.output.removesuffix("\n").splitlines()[-1].startswith("pipeline: ")
    assert all(letter.isprintable() for letter in ended.output.replace("\n", ""))
    assert ended.output.count("pipeline: ") == 1 + word.count("pipeline: ")
