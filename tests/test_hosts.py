"""Two hosts without SLURM, as README has it: the curve of one process, and the same bits when one of them was lost."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY, Run
from hosts import Host, hosts, missing
from processes import below
from test_world_size import counts, curve

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]

ROOT, BIN = Path(__file__).parents[1], Path(sys.executable).parent
EXPERIMENT = ["train.precision=fp64", "train.epochs=12", "train.lr=0.01", "run.hang_timeout=8"]
# the lines of README, for one address and another; a line for each host
LINES = {
    "torchrun": re.findall(r"^torchrun (--nnodes 2 .*) launch/run.py", (ROOT / "README.md").read_text(), re.MULTILINE),
    "accelerate": re.findall(
        r"^ACCELERATE_USE_CPU=true accelerate (launch .* --num_machines 2 .*) launch/run.py", (ROOT / "README.md").read_text(), re.MULTILINE
    ),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    if why := missing():
        pytest.skip(why)
    with hosts(tmp_path_factory.mktemp("hosts")) as started:
        yield started


def start(both: tuple[Host, Host], folder: Path, launcher: str) -> "list[subprocess.Popen[str]]":
    """The experiment on both hosts, two processes each."""
    folder.mkdir(exist_ok=True)
    started = []
    for host, line in zip(both, LINES[launcher], strict=True):
        options = line.replace("10.0.0.1", both[0].address).replace("10.0.0.2", both[1].address).split()
        command = [str(BIN / launcher), *options, str(ROOT / "launch/run.py"), *TINY, *EXPERIMENT]
        started.append(host.start(*command, at=folder, ACCELERATE_USE_CPU="true"))
    return started


def ended(started: "list[subprocess.Popen[str]]") -> tuple[list[int], str]:
    said = [process.communicate(timeout=180)[0] for process in started]
    return [process.returncode for process in started], "\n".join(said)


@pytest.fixture(scope="module")
def undisturbed(both: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, said = ended(start(both, folder, "torchrun"))
    assert codes == [0, 0], said
    assert "train: 4 processes (ddp) on cpu" in said
    return folder


def test_torchrun_on_two_hosts_gives_the_curve_and_the_counts_of_one_process(run: Run, tmp_path: Path, undisturbed: Path) -> None:
    alone = run(*EXPERIMENT, in_folder="alone", until="evaluate")
    assert alone.code == 0, alone.output
    assert curve(undisturbed) == [pytest.approx(line, rel=1e-12, abs=1e-12) for line in curve(tmp_path / "alone")]
    assert counts(undisturbed) == counts(tmp_path / "alone")


def test_accelerate_on_two_hosts_gives_the_same_bits(both: tuple[Host, Host], tmp_path: Path, undisturbed: Path) -> None:
    codes, said = ended(start(both, tmp_path, "accelerate"))
    assert codes == [0, 0], said
    equal(tmp_path, undisturbed)


@pytest.mark.parametrize("how", ["its processes are killed", "its power fails"])
def test_one_host_is_lost_and_the_same_commands_go_on_with_the_same_bits(
    both: tuple[Host, Host], tmp_path: Path, undisturbed: Path, how: str
) -> None:
    started = start(both, tmp_path, "torchrun")
    until(lambda: bool(list(tmp_path.glob("artifacts/train/*/checkpoints/step-*"))), 120, lambda: "no checkpoint was written")
    if how == "its power fails":
        both[1].power_off()
    else:
        for pid in [*below(started[1].pid), started[1].pid]:
            os.kill(pid, signal.SIGKILL)
    codes, said = ended(started)
    assert codes[0] == 1, said
    if how == "its power fails":
        assert "(run.hang_timeout)" in said
        both[1].boot()
    else:
        assert "pipeline: " in said
        assert "another process was lost" in said
    codes, said = ended(start(both, tmp_path, "torchrun"))
    assert codes == [0, 0], said
    assert "train: going on from step-" in said
    equal(tmp_path, undisturbed)


def equal(first: Path, second: Path) -> None:
    for name in ("train/weights.safetensors", "metrics.jsonl"):
        assert (first / "runs/tiny" / name).read_bytes() == (second / "runs/tiny" / name).read_bytes(), f"{name} differs"
