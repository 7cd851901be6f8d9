"""One process's part in the doctor: what it has found, and what it hears of the others, each within so many seconds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config
from pipeline.doctor import limits
from pipeline.doctor.findings import Clock, Finding
from pipeline.errors import PipelineError
from pipeline.runtime.launch import Launch

SLOW = "its file system or network does not answer; try it by hand on that host"


@dataclass
class Case:
    """One process's part."""

    config: Config
    launch: Launch
    threads: int
    clock: Clock
    asked: str = ""  # OMP_NUM_THREADS, which does not count
    meeting: Any = None  # a `probe.Meeting`, once it is reached
    names: dict[int, str] = field(default_factory=dict)  # of the processes; on the main one
    found: list[Finding] = field(default_factory=list)  # by this process, and on the main one by all

    @property
    def name(self) -> str:
        return f"rank {self.launch.rank} on {os.uname().nodename}" if self.launch.size > 1 else ""

    def of(self, finding: Finding) -> Finding:
        """As one of this process's own."""
        return Finding(finding.what, finding.value, finding.wrong, finding.cure, self.name)

    def add(self, findings: Sequence[Finding]) -> None:
        self.found += findings

    def gather(self, what: str, value: Any, seconds: float) -> dict[int, Any]:
        """On the main process what each told within so many seconds, and a word of those that did not; elsewhere nothing."""
        self.meeting.tell(what, value)
        if not self.launch.is_main:
            return {}
        heard: dict[int, Any] = self.meeting.hear(what, range(self.launch.size), self.clock.left(seconds))
        for rank in set(range(self.launch.size)) - heard.keys():
            wrong = f"nothing was heard of it within {seconds:.0f} s, when it came to its {what}"
            name = self.names.get(rank, f"rank {rank}")
            self.add([Finding("rendezvous", wrong=wrong, cure="what it printed itself says more", who=name)])
        return heard

    def share(self, what: str, value: Any) -> Any:
        """The main process's value, on each.

        Raises:
            PipelineError: it tells none.
        """
        if self.launch.is_main:
            self.meeting.tell(what, value)
            return value
        heard = self.meeting.hear(what, [0], self.clock.left(limits.ALL))
        if not heard:
            raise PipelineError(f"rank 0 was reached, but has not told its {what}; what it printed says more")
        return heard[0]
