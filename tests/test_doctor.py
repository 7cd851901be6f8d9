"""`pipeline doctor`: what would keep a run from beginning is said in a line with a cure, and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from cluster import until
from conftest import TINY
from processes import Ended, begin, free_port, launch

from pipeline.config import load
from pipeline.doctor.judge import judged
from pipeline.runtime.fingerprint import ROOT

ALL = {"processes", "code", "configuration", "versions", "devices", "run.folder", "rename", "data", "model", "checkpoints", "W&B"}
TOGETHER = {"rendezvous", "clock", "all-reduce"}


def doctor(folder: Path, *words: str, **how: Any) -> Ended:
    return launch(folder, ["doctor", *TINY, *words, "--json"], **how)


def wrong(ended: Ended) -> list[Mapping[str, str]]:
    """What it found, of a doctor that ended with 1 and no traceback."""
    assert ended.codes[0] == 1, ended.output
    assert "Traceback" not in ended.output
    found = [finding for finding in ended.summary["findings"] if finding["wrong"]]
    assert all(finding["cure"] for finding in found), found
    last = ended.output.splitlines()[-2]
    assert last == f"doctor: wrong: {', '.join(dict.fromkeys(finding['what'] for finding in found))}"
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_where_all_is_well_each_line_says_so_and_nothing_is_left(tmp_path: Path, processes: int) -> None:
    ended = doctor(tmp_path, processes=processes)
    assert ended.code == 0, ended.output
    assert ended.summary["ok"]
    assert {finding["what"] for finding in ended.summary["findings"]} == (ALL | TOGETHER if processes > 1 else ALL)
    assert all(line.startswith("ok ") for line in ended.output.splitlines()[:-2]), ended.output
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} <= {"output.txt", "output"}


def test_sums_are_timed_by_what_training_uses_and_by_the_network(tmp_path: Path) -> None:
    values = [found["value"] for found in doctor(tmp_path, processes=2).summary["findings"] if found["what"] == "all-reduce"]
    assert [value.split(":")[0] for value in values] == ["shared memory", "gloo"]
    assert all("µs for 4 bytes, 16 MB in" in value and "GB/s" in value for value in values)


def test_prepared_data_are_found_and_checkpoints_measured(tmp_path: Path) -> None:
    assert launch(tmp_path, ["prepare", *TINY]).code == 0
    lines = doctor(tmp_path, "data.root=/nope", environment={"OMP_NUM_THREADS": "7"}).output
    assert "ok     data           synthetic, prepared: 57 test, 181 train, 19 validation; /nope is not there, and not needed\n" in lines
    assert "ok     model          lenet takes the images, and can begin as is asked\n" in lines
    assert "ok     checkpoints    take up to" in lines
    assert ": 1 process of 1 thread; OMP_NUM_THREADS=7 does not count, run.threads does\n" in lines


@pytest.mark.parametrize("word", ["train.freeze=[nothing*]", "train.model.kernel=50", "train.init=none.pth"])
def test_a_model_that_cannot_be_trained_as_asked_is_told_as_such(tmp_path: Path, word: str) -> None:
    assert [finding["what"] for finding in wrong(doctor(tmp_path, word))] == ["model"]


def two(folder: Path, paths: tuple[Path, Path]) -> list[tuple[int, str]]:
    """The exit codes and outputs of two processes that import the packages in `paths`."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "doctor", *TINY, "--json"],
            cwd=folder,
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, path in enumerate(paths)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


@pytest.mark.soak
def test_other_code_on_a_process_is_named(tmp_path: Path) -> None:
    copytree(ROOT, tmp_path / "copy/pipeline", ignore=lambda *_: ["__pycache__"])
    with (tmp_path / "copy/pipeline/learning/losses.py").open("a") as file:
        file.write("# changed\n")
    first, second = two(tmp_path, (ROOT.parent, tmp_path / "copy"))
    (found,) = wrong(Ended([first[0], second[0]], first[1]))
    assert second[0] == 1, second[1]
    assert (found["what"], found["wrong"]) == ("code", "differs from rank 0: pipeline/learning/losses.py")
    assert found["who"].startswith("rank 1 on ")


def test_another_configuration_is_named_key_by_key(tmp_path: Path) -> None:
    for rank, rate in enumerate((0.1, 0.2)):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "one.yaml").write_text(f"train: {{lr: {rate}}}")
    shared = [f"run.folder={tmp_path}/runs", f"run.artifacts={tmp_path}/artifacts", "run.trackers=[]"]
    ended = launch(tmp_path, ["doctor", "one.yaml", *shared, "--json"], processes=2, before=partial(in_own_folder, folder=tmp_path))
    (found,) = wrong(ended)
    assert found["wrong"] == "differs from rank 0: train.lr is 0.2 and not 0.1"


def in_own_folder(rank: int, folder: Path) -> None:
    (folder / str(rank)).mkdir(exist_ok=True)
    os.chdir(folder / str(rank))


def test_a_folder_that_each_process_has_for_itself_is_told(tmp_path: Path) -> None:
    ended = doctor(tmp_path, processes=2, before=partial(in_own_folder_at_once, folder=tmp_path))
    (found,) = wrong(ended)
    assert found["what"] == "run.folder"
    assert found["wrong"] == f"{tmp_path}/1 is not the one of rank 0"
    assert "all nodes must see the same" in found["cure"]


def in_own_folder_at_once(rank: int, folder: Path) -> None:
    from pipeline.doctor import limits

    limits.SEEN = 0.1
    in_own_folder(rank, folder)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tests", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(("options", "what"), [("size=64k", "No space left on device"), ("ro", "Read-only file system")])
def test_a_folder_that_is_full_or_read_only_is_named(tmp_path: Path, options: str, what: str) -> None:
    with mounted(tmp_path / "runs", options):
        (found,) = [each for each in wrong(doctor(tmp_path, processes=2)) if each["what"] == "run.folder"]
        assert what in found["wrong"]
        assert str(tmp_path / "runs") in found["wrong"]
        assert not [*(tmp_path / "runs").iterdir()]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    (found,) = wrong(doctor(tmp_path))
    assert found["wrong"] == f"{tmp_path}: Not a directory: {tmp_path}/runs"


def quick(rank: int, then: Callable[[int], None] | None = None) -> None:
    from pipeline.doctor import limits

    limits.REACH, limits.LINGER, limits.WEB = 1.0, 0.1, 0.5
    if then is not None:
        then(rank)


def at_a_dead_address(rank: int) -> None:
    if rank == 1:
        os.environ["MASTER_ADDR"] = "192.0.2.1"  # RFC 5737: of nobody


def test_a_process_that_cannot_reach_the_others_says_so_itself_and_is_missed(tmp_path: Path) -> None:
    ended = doctor(tmp_path, processes=2, before=partial(quick, then=at_a_dead_address))
    assert ended.code == 1
    (found,) = wrong(ended)
    assert (found["what"], found["who"]) == ("rendezvous", "rank 1")
    assert "nothing was heard of it within 1 s" in found["wrong"]
    told = (tmp_path / "output-1.txt").read_text()
    assert told.startswith(f"pipeline: WRONG  rendezvous     rank 1 on {socket.gethostname()}: cannot reach 192.0.2.1:"), told
    assert "within 1 s" in told
    assert "MASTER_ADDR must be the host of rank 0" in told


def leave(rank: int) -> None:
    if rank == 1:
        os._exit(9)


def test_a_process_that_never_comes_is_missed(tmp_path: Path) -> None:
    ended = doctor(tmp_path, processes=2, before=partial(quick, then=leave))
    assert ended.codes == [1, 9]
    assert [found["who"] for found in wrong(ended)] == ["rank 1"]


def test_a_port_that_is_taken_is_one_line_with_a_cure(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        ended = doctor(tmp_path, processes=2, before=partial(quick, then=partial(meet_at, port=port)))
    assert ended.code == 1
    (found,) = wrong(ended)
    assert found["wrong"] == f"port {port} is taken or refused (Address already in use)"
    assert "MASTER_PORT" in found["cure"]
    assert "rank 1 on " in (tmp_path / "output-1.txt").read_text()


def meet_at(rank: int, port: int) -> None:
    os.environ["MASTER_PORT"] = str(port)


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    (found,) = wrong(doctor(tmp_path, "data.source=folder", "data.root=nowhere"))
    assert (found["what"], found["wrong"]) == ("data", "no images in nowhere")
    (found,) = wrong(doctor(tmp_path, "data.source=mnist", "data.root=nowhere"))
    assert "nowhere/MNIST/raw lacks train-images-idx3-ubyte" in found["wrong"]


def an_hour_ahead(rank: int) -> None:
    real = time.time
    if rank == 1:
        time.time = lambda: real() + 3600


def test_a_clock_that_is_ahead_is_told_beside_the_others_and_beside_the_file_systems(tmp_path: Path) -> None:
    found = wrong(doctor(tmp_path, processes=2, before=an_hour_ahead))
    assert {each["what"] for each in found} == {"clock"}
    assert [each["wrong"] for each in found] == ["3,600 s ahead of that of run.folder", "3,600 s ahead of that of rank 0"]
    assert all(each["who"].startswith("rank 1 on ") for each in found)


def test_gpus_that_were_given_but_are_not_seen_are_told(tmp_path: Path) -> None:
    (found,) = wrong(doctor(tmp_path, environment={"SLURM_GPUS_ON_NODE": "2"}))
    assert (found["what"], found["wrong"]) == ("devices", "2 GPUs are given, but torch sees 0")


def test_fewer_processes_than_were_asked_for_is_a_matter_of_configuration(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["doctor", *TINY, "run.processes=3"], processes=2)
    assert ended.code == 2
    assert "3 processes were asked for, but this is 1 of 2" in ended.output
    assert "pipeline: rank 1: 3 processes were asked for" in (tmp_path / "output-1.txt").read_text()


def test_fewer_processes_than_tasks_of_the_job_is_told(tmp_path: Path) -> None:
    (found,) = wrong(doctor(tmp_path, environment={"SLURM_NTASKS": "4"}))
    assert found["wrong"] == "the SLURM job has 4 tasks, but there is 1 process"


def test_a_service_that_does_not_answer_is_told_without_its_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        service = {"WANDB_BASE_URL": f"http://127.0.0.1:{mute.getsockname()[1]}", "WANDB_API_KEY": "5ec7e7" * 7, "WANDB_MODE": "online"}
        ended = doctor(tmp_path, "run.trackers=[wandb]", environment=service, before=quick)
    (found,) = wrong(ended)
    assert found["what"] == "W&B"
    assert "5ec7e7" not in ended.output


def facts(rank: int, **device: Any) -> dict[str, Any]:
    gpu = {"kind": "cuda", "given": 2, "seen": 2, "index": rank, "name": "GPU", "uuid": f"u{rank}", "free": 2**30, "total": 2**30}
    versions = {"driver": "1", "cuda": "1", "nccl": "1"}
    shared = {"size": 2, "tasks": 1, "code": {}, "configuration": {}, "versions": {}, "digests": {"code": "", "configuration": ""}}
    place = {"rank": rank, "host": "h", "cores": [rank], "threads": 1, "device_asked": "auto"}
    return {**shared, **place, "device": {**gpu, **versions, **device}}


def test_two_processes_on_one_gpu_and_more_processes_than_gpus_are_told() -> None:
    def wrongs(*all_: dict[str, Any]) -> list[tuple[str, str]]:
        return [(found.who, found.wrong) for found in judged(load(), all_) if found.wrong]

    assert wrongs(facts(0), facts(1)) == []
    assert wrongs(facts(0), facts(1, uuid="u0")) == [("rank 0 on h and rank 1 on h", "have the same GPU")]
    assert wrongs(facts(0, seen=1), facts(1, seen=1)) == [("h", "2 processes, but 1 GPU to be seen")]
    assert wrongs(facts(0), facts(1, kind="cpu"))[0] == ("rank 1 on h", "computes on cpu, rank 0 on cuda")


def test_processes_that_share_a_core_are_told() -> None:
    first, second = (facts(rank, kind="cpu", given=0) | {"cores": [0]} for rank in range(2))
    assert [found.wrong for found in judged(load(), [first, second]) if found.wrong] == ["2 processes share 1 core"]


def test_a_signal_ends_it_with_its_code_and_leaves_nothing(tmp_path: Path) -> None:
    (process,) = begin(tmp_path, ["doctor", *TINY], before=for_ever)
    until(lambda: bool([*tmp_path.glob(".doctor-*/hello")]), 60, lambda: "nothing was tried")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    output = (tmp_path / "output.txt").read_text()
    assert output.splitlines()[-1] == "pipeline: stopped while looking; nothing was changed"
    assert [path.name for path in tmp_path.iterdir()] == ["output.txt"]


def for_ever(rank: int) -> None:
    from pipeline.doctor import folders

    folders.SPEND, folders.MOST = 1e9, 1 << 20
    folders.os.fsync = lambda descriptor: time.sleep(1e9)  # type: ignore[attr-defined]
