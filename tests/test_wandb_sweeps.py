"""A sweep of W&B: the real client and its agent, each trial by the normal launcher; the service is on this machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from wandb_service import Service
from wandb_sweeps import SWEEP, SweepStore

from pipeline.runtime import journal

ROOT = Path(__file__).parent.parent
OFTEN = "from wandb.wandb_agent import Agent; Agent.POLL_INTERVAL = 0.5; from wandb.cli.cli import cli; cli()"  # not every 5 s
SHORT = {"train.epochs": 2, "train.lr": 0.05, "train.clip": None, "train.optimizer": {"name": "sgd", "nesterov": True, "momentum": 0.5}}
FAILING = {"train.epochs": 1, "train.lr": 0.05, "train.batch_size": 1}
LONG = {"train.epochs": 150, "train.lr": 0.02, "train.optimizer.momentum": 0.5, "train.validate_every": 20, "run.log_every": 100}
TRIALS: dict[str, dict[str, Any]] = {"short": SHORT, "failing": FAILING, "long": LONG, "again": SHORT}


def client(service: Service, folder: Path, *words: str) -> str:
    """What `wandb WORDS` says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = f"{Path(sys.executable).parent}:{clean['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", OFTEN, *words],
        cwd=folder,
        env={**clean, **service.environment, "HOME": str(folder), "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.soak
def test_each_trial_of_an_agent_is_its_run_on_two_processes_and_goes_on_when_it_was_preempted(tmp_path: Path) -> None:
    fixed = [word for word in TINY if not word.startswith(("train.epochs", "train.lr", "run.log", "run.trackers"))]
    command = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())["command"]
    sweep = {
        "program": str(ROOT / "launch/train.py"),
        "command": [*command[:-1], *fixed, command[-1]],
        "method": "random",
        "metric": {"name": "validation/accuracy", "goal": "maximize"},
        "parameters": {"train.lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.1}, "train.epochs": {"min": 1, "max": 400}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    folder = tmp_path / f"runs/sweep-{SWEEP}"
    store = SweepStore(TRIALS, preempts=lambda run: run == "long" and bool(journal.read(folder / "tiny-long/metrics.jsonl")))
    with Service(store) as service:
        told = client(service, tmp_path, "sweep", "--project", "searched", "sweep.yaml")
        assert f"wandb agent me/searched/{SWEEP}" in told
        output = client(service, tmp_path, "agent", f"me/searched/{SWEEP}")
    assert store.handed_out == ["short", "failing", "long", "long", "again"], output

    assert sorted(path.name for path in folder.iterdir() if "." not in path.name) == ["tiny-again", "tiny-long", "tiny-short"]
    assert "train.batch_size: 1 images cannot be cut into 2 parts (2 processes" in output
    assert store.runs.keys() == {"short", "long", "again"}  # the other had nothing to tell
    for name, run in store.runs.items():
        assert (run.told["sweep"], run.project, run.exit_code) == (SWEEP, "searched", 0)
        lines = [line for line in journal.read(folder / f"tiny-{name}/metrics.jsonl") if "train/loss" in line]
        assert [line["step"] for line in run.history if "train/loss" in line] == [line["step"] for line in lines]
        assert run.config["train"]["value"]["lr"] == TRIALS[name]["train.lr"]
        best = max(line.get("validation/accuracy", 0) for line in journal.read(folder / f"tiny-{name}/metrics.jsonl"))
        assert run.summary["validation/accuracy"] == best  # of the weights that are kept
    assert store.runs["short"].config["train"]["value"]["clip"] is None
    assert "train: going on from step" in output
    assert output.count("train: 2 processes (shared) on cpu") == 3


def test_the_client_takes_the_shipped_sweep_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_bytes((ROOT / "configs/sweep.yaml").read_bytes())
    with Service(store := SweepStore({})) as service:
        told = client(service, tmp_path, "sweep", "sweep.yaml")
    assert f"wandb agent me/pipeline/{SWEEP}" in told
    assert store.sweep == yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
