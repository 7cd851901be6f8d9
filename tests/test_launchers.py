"""The launchers that people use, as they use them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY

pytestmark = pytest.mark.launchers

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parent.parent
WORDS = [*TINY, "run.trackers=[]"]


def start(folder: Path, *command: str) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    return subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def summary(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "runs/tiny/summary.json").read_text()))


@pytest.mark.parametrize(
    ("command", "size"),
    [
        pytest.param(["python", str(ROOT / "launch/run.py")], 1, marks=pytest.mark.soak),
        pytest.param(["pipeline", "run"], 1, marks=pytest.mark.soak),
        (["accelerate", "launch", "--cpu", str(ROOT / "launch/run.py")], 1),
        (["torchrun", "--nproc-per-node", "2", str(ROOT / "launch/run.py")], 2),
    ],
    ids=["python", "pipeline", "accelerate", "torchrun"],
)
def test_a_launcher_runs_everything(tmp_path: Path, command: list[str], size: int) -> None:
    output, _ = (process := start(tmp_path, *command, *WORDS, "--json")).communicate(timeout=110)
    assert process.returncode == 0, output
    assert summary(tmp_path)["world_size"] == size
    assert json.loads(output.splitlines()[-1]) == summary(tmp_path)


def test_accelerate_launch_starts_several_processes_without_a_gpu_if_asked_as_it_wants(tmp_path: Path) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        process = start(tmp_path, "accelerate", "launch", "--multi_gpu", "--num_processes", "2", str(ROOT / "launch/train.py"), *WORDS)
        output, _ = process.communicate(timeout=110)
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
    assert process.returncode == 0, output
    assert "train: 2 processes (shared) on cpu" in output


def test_one_process_where_two_were_asked_for_is_an_error_with_a_cure(tmp_path: Path) -> None:
    process = start(tmp_path, "accelerate", "launch", "--cpu", "--num_processes", "2", str(ROOT / "launch/train.py"), *WORDS)
    output, _ = process.communicate(timeout=110)
    assert process.returncode != 0
    assert "pipeline: 2 processes were asked for, but this is 1 of 1; start `torchrun --nproc-per-node 2" in output


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_saves_at_a_step_and_the_same_command_goes_on(tmp_path: Path, processes: int) -> None:
    command = ["torchrun", "--nproc-per-node", "2"] if processes == 2 else ["python"]
    words = [*command, str(ROOT / "launch/train.py"), *WORDS, "train.epochs=2000", "train.validate_every=100"]
    process = start(tmp_path, *words)
    status = tmp_path / "runs/tiny/status.json"
    until(lambda: bool(list(tmp_path.glob("artifacts/train/*/checkpoints/step-*"))), 60, lambda: "no checkpoint was written")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and all it started
    output, _ = process.communicate(timeout=60)
    told = json.loads(status.read_text())
    assert (told["state"], told["exit_code"]) == ("stopped", 75), output
    assert process.returncode == (75 if processes == 1 else 1), output  # torchrun has but one code for all
    assert "with a checkpoint; the same command goes on" in output
    step = int(told["message"].split("after step ")[1].split()[0])
    assert [p.name for p in sorted(tmp_path.glob("artifacts/train/*/checkpoints/step-*"))][-1] == f"step-{step:09d}"


def test_a_port_that_is_taken_is_one_line_with_a_cure(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1]), "RANK": "0", "WORLD_SIZE": "2"}
        words = [sys.executable, "-m", "pipeline", "train", *WORDS]
        ended = subprocess.run(words, cwd=tmp_path, env={**os.environ, **meeting}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "is taken; set MASTER_PORT, or --master-port, to another" in ended.stderr
    assert "Traceback" not in ended.stderr
