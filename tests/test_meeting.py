"""Where processes meet, or do not: by which network, and how a process ends that nobody waits for."""

import socket
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from processes import Ended, free_port, launch

from pipeline.runtime import claims
from pipeline.runtime.launch import interface


def soon(_: int) -> None:
    from pipeline import process

    process.UNANSWERED = 0.5


def one_of_two(folder: Path, rank: int, address: str, **environment: str) -> Ended:
    """One process, the other of which never comes."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": address, "MASTER_PORT": str(free_port())}
    return launch(folder, ["train", *TINY], before=soon, environment=place | environment)


@pytest.mark.parametrize(("rank", "address"), [(0, "192.0.2.200"), (1, "192.0.2.200"), (1, "no-such-host.invalid")])  # RFC 5737, RFC 2606
def test_where_the_first_host_does_not_answer_it_is_one_line_with_a_cure(tmp_path: Path, rank: int, address: str) -> None:
    ended = one_of_two(tmp_path, rank, address)
    *_, last = ended.output.splitlines()
    assert (ended.code, ended.output.count("pipeline: "), "Traceback" in ended.output) == (1, 1, False), ended.output
    assert last.startswith(f"pipeline: {'rank 1: ' if rank else ''}cannot reach {address}:")
    assert "MASTER_ADDR must be the host of rank 0" in last


def test_a_process_that_wakes_when_slurm_has_started_the_job_again_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    later = claims.take(tmp_path / "runs/tiny/.run", tmp_path / "runs/tiny")
    assert isinstance(later, claims.Claim)
    later.leave()  # it may have ended by now
    ended = one_of_two(tmp_path, 1, "127.0.0.1", SLURM_JOB_ID="12", SLURM_RESTART_COUNT="0")
    assert (ended.code, ended.output.count("\n")) == (1, 1), ended.output
    assert ended.output.startswith(f"pipeline: rank 1: runs/tiny was taken over by {socket.gethostname()} pid ")


def test_gloo_takes_the_network_that_leads_to_the_first_host() -> None:
    assert interface("127.0.0.1") == interface("localhost") == "lo"
    for name, known in psutil.net_if_addrs().items():
        for each in known:
            if each.family == socket.AF_INET:
                assert interface(each.address) == name
    assert interface("no-such-host.invalid") == ""
