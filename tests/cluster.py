"""A real SLURM of some nodes on this machine, started for the tests and stopped after them.

munged, slurmctld and a slurmd a node, from Debian's packages, run as root, with all they keep in
one folder. No systemd, no cgroups; the nodes share a host name and differ in their ports.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import randrange

from processes import free_port

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}  # and their packages
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
# cred_expire is also how long a requeued job waits before it starts again; of less than 5 SLURM makes 120
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
# job ids are ports in sbatch scripts: two clusters on one machine must not count alike
FirstJobId={first_job}
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
# nodes may claim more than this machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=5
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
{further}
"""


@dataclass(frozen=True)
class Cluster:
    folder: Path
    daemons: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)  # munged, slurmctld, and by the names of nodes

    @property
    def environment(self) -> dict[str, str]:
        """For SLURM's clients: this cluster, and nothing of a job that the tests themselves may run in."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str | Path, at: Path | None = None, **environment: str) -> str:
        """What a client printed; an AssertionError with what it complained of, if it failed."""
        done = subprocess.run(command, cwd=at, env=self.environment | environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr or done.stdout}\n{self.logs()}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, ExitCode, Restarts, ..."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start(self, name: str) -> None:
        """A daemon, which may have run before: `munged`, `slurmctld` or that of a node."""
        program = name if name in PROGRAMS else "slurmd"
        path = shutil.which(program, path=PATH)
        assert path is not None, program
        with (self.folder / "daemons.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [path, *self._arguments(name)], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """As a power cut does."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def _arguments(self, name: str) -> list[str]:
        if name == "munged":
            files = {
                "socket": "munge.socket",
                "key-file": "munge.key",
                "log-file": "munged.log",
                "pid-file": "munged.pid",
                "seed-file": "seed",
            }
            return ["--foreground", "--force", *(f"--{option}={self.folder / file}" for option, file in files.items())]
        return ["-D", "-f", str(self.folder / "slurm.conf"), *(["-N", name] if name != "slurmctld" else [])]

    def logs(self) -> str:
        """The last words of the daemons, for a message."""
        return "\n".join(f"{path.name}:\n{_tail(path)}" for path in sorted(self.folder.glob("*.log")))


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    if os.getuid() != 0:
        return "a SLURM cluster for tests needs root"
    lacking = sorted(package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None)
    return f"a SLURM cluster for tests needs the packages {' '.join(lacking)}" if lacking else ""


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2, further: str = "") -> Iterator[Cluster]:
    """So many idle nodes; `folder` must be empty, its path short (a socket's is at most 107 characters); `further` lines of slurm.conf."""
    started = Cluster(folder)
    names = [f"node{number}" for number in range(1, nodes + 1)]
    _configure(folder, names, further)
    with contextlib.ExitStack() as running:
        running.callback(_stop, started)
        started.start("munged")
        until((folder / "munge.socket").exists, 20, started.logs)
        for name in ("slurmctld", *names):
            started.start(name)
        until(lambda: _states(started) == ["idle"] * nodes, 60, started.logs)
        running.callback(_end_jobs, started)
        yield started


def until(true: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    """Wait until something is true.

    Raises:
        AssertionError: it took too long; says what `otherwise` returns.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{otherwise()}"
        time.sleep(0.05)


def _configure(folder: Path, names: list[str], further: str) -> None:
    for name in ("state", *names):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={free_port()} CPUs=4 RealMemory=1000" for name in names)
    text = SLURM_CONF.format(host=host, folder=folder, port=free_port(), first_job=randrange(1, 10000), nodes=nodes, further=further)
    (folder / "slurm.conf").write_text(text)


def _stop(cluster: Cluster) -> None:
    for daemon in [*cluster.daemons.values()][::-1]:
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _states(cluster: Cluster) -> list[str]:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"], env=cluster.environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split()


def _end_jobs(cluster: Cluster) -> None:
    """Those of a test that failed, or their processes would outlive the cluster."""
    if cluster.call("squeue", "--noheader"):
        cluster.call("scancel", "--user=root")
        until(lambda: not cluster.call("squeue", "--noheader"), 60, cluster.logs)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:])
