"""Two hosts on this machine, and a switch between them: namespaces with a name, an address, processes and memory of their own.

The file system is shared, but for /etc/hosts, in which each knows itself as Debian has it, by an address of the loopback, and not
the other; and for /dev/shm.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import until
from processes import below

APART = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
BOOT = """\
hostname {name} && mount -t tmpfs none /dev/shm && mount --bind {folder}/{name}.hosts /etc/hosts && touch {folder}/{name}.up
exec sleep infinity
"""


@dataclass
class Host:
    name: str
    address: str
    folder: Path
    switch: "subprocess.Popen[bytes]"
    holder: "subprocess.Popen[bytes] | None" = None

    def boot(self) -> None:
        """Let it run, joined to the switch."""
        (self.folder / f"{self.name}.hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        up = self.folder / f"{self.name}.up"
        up.unlink(missing_ok=True)
        script = BOOT.format(name=self.name, folder=self.folder)
        self.holder = subprocess.Popen(["unshare", *APART, "sh", "-c", script], stdout=subprocess.DEVNULL)
        until(up.exists, 20, lambda: f"{self.name} does not come up")
        end = ["name", self.name, "netns", str(self.switch.pid)]
        _call("ip", "link", "add", "cable", "netns", self.first, "type", "veth", "peer", *end)
        _call(*_inside(self.switch.pid), "ip", "link", "set", self.name, "master", "switch", "up")
        for words in (["addr", "add", f"{self.address}/24", "dev", "cable"], ["link", "set", "cable", "up"], ["link", "set", "lo", "up"]):
            _call(*_inside(self.first), "ip", *words)

    @property
    def first(self) -> str:
        """The pid of its first process, without which there is none."""
        assert self.holder is not None
        return str(below(self.holder.pid)[0])

    def start(self, *command: str, at: Path, **environment: str) -> "subprocess.Popen[str]":
        """What it prints comes together."""
        inside = ["nsenter", "-t", self.first, "--net", "--uts", "--ipc", "--mount", "--pid", f"--wd={at}"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLOO_", "MASTER_"))}
        return subprocess.Popen([*inside, *command], env=kept | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def power_off(self) -> None:
        """All that it runs is gone at once, without a word to anybody."""
        assert self.holder is not None
        _call(*_inside(self.switch.pid), "ip", "link", "delete", self.name)
        os.kill(int(self.first), signal.SIGKILL)
        self.holder.wait()


def missing() -> str:
    """Why there can be no such hosts here; empty if there can."""
    lacking = [program for program in ("unshare", "nsenter", "ip") if shutil.which(program) is None]
    if os.getuid() != 0 or lacking:
        return f"hosts for tests need {' and '.join(lacking) or 'root'}"
    tried = subprocess.run(["unshare", *APART, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False)
    return f"no namespaces may be made here: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two, joined and up."""
    switch = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link add switch type bridge; ip link set switch up; exec sleep infinity"]
    )
    one, other = Host("host1", "10.77.0.1", folder, switch), Host("host2", "10.77.0.2", folder, switch)
    try:
        until(lambda: "switch" in _told(*_inside(switch.pid), "ip", "link"), 20, lambda: "no bridge can be made")
        for host in (one, other):
            host.boot()
        yield one, other
    finally:
        for host in (one, other):
            with contextlib.suppress(IndexError, AssertionError, subprocess.CalledProcessError):
                host.power_off()
        switch.kill()
        switch.wait()


def _inside(pid: str | int) -> list[str]:
    return ["nsenter", "-t", str(pid), "--net"]


def _call(*words: str) -> None:
    subprocess.run(words, check=True)


def _told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
