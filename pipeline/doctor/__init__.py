"""Whether a run could begin: looked at on every process, each look for a bounded time; nothing is kept, and nothing left behind.

Processes meet at torch's store, as those of a run do, and tell the main one what they see; that one judges,
and says so. A process that cannot meet the others says so itself.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from pipeline.config import Config
from pipeline.doctor import alone, folders
from pipeline.doctor.findings import Clock, Finding, begin, given, is_hung, lines, merged
from pipeline.doctor.folders import Trial
from pipeline.doctor.judge import judged, who
from pipeline.errors import Interrupted, PipelineError
from pipeline.plan import check_size
from pipeline.runtime.console import say
from pipeline.runtime.launch import Launch, prepare_process, read_launch
from pipeline.runtime.signals import STOP_SIGNALS, exit_code

SECONDS = 55.0  # for all of it
DEVICE, REACH, FOLDER, SUMS, DATA, WEB = 25.0, 20.0, 8.0, 15.0, 12.0, 8.0  # for each part
SKEW = 2.0  # seconds by which clocks may differ
TICKS = 3  # of which the least difference counts: a process may be late to look at its clock
LINGER = 10.0  # seconds that a process which cannot meet the others leaves them for their own words
GONE = 3.0  # seconds that the main process waits for the others to have heard the end
SLOW = "its file system or network does not answer; try it by hand on that host"


@dataclass
class Case:
    """One process's part."""

    config: Config
    launch: Launch
    threads: int
    clock: Clock
    meeting: Any = None  # a `probe.Meeting`, once it is reached
    names: dict[int, str] = field(default_factory=dict)  # of the processes; on the main one
    found: list[Finding] = field(default_factory=list)  # by this process, and on the main one by all

    @property
    def name(self) -> str:
        return f"rank {self.launch.rank} on {os.uname().nodename}" if self.launch.size > 1 else ""

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
        heard = self.meeting.hear(what, [0], self.clock.left(SECONDS))
        if not heard:
            raise PipelineError(f"rank 0 was reached, but has not told its {what}; what it printed says more")
        return heard[0]


def doctor(config: Config, *, as_json: bool) -> int:
    """Look at everything, and say it on the main process; 0 if all is well, else 1."""
    launch = read_launch(config.run)
    check_size(config, launch.size)
    case = Case(config, launch, prepare_process(config.run, launch), Clock(SECONDS))
    try:
        with _interruptible():
            code = _main(case, as_json) if launch.is_main else _other(case)
    except PipelineError:
        raise
    except Exception as error:  # so that the others are not left without a word
        raise PipelineError(f"{case.name}: the doctor itself failed: {type(error).__name__}: {error}") from error
    sys.stdout.flush()
    if is_hung():  # torch's threads, or a file system, would hold up an orderly end
        os._exit(code)
    return code


def _main(case: Case, as_json: bool) -> int:
    try:
        _look(case)
    except Interrupted:
        for line in lines(case.found):
            say(line)
        raise
    findings = merged(case.found)
    for line in lines(findings):
        say(line)
    code = int(any(finding.wrong for finding in findings))
    if as_json:
        say(json.dumps({"ok": not code, "processes": case.launch.size, "findings": [asdict(finding) for finding in findings]}))
    if case.meeting is not None and case.launch.size > 1:
        case.meeting.tell("verdict", code)
        case.meeting.hear("end", [*case.names][1:], GONE)
    return code


def _look(case: Case) -> None:
    """At what all processes see, and at what the main one alone needs."""
    config = case.config
    web = begin(lambda: alone.web(config))
    data = begin(lambda: alone.data(config))
    try:
        _together(case)
    except Interrupted:
        raise
    except PipelineError as error:
        case.add([_of(case, _trouble("rendezvous", error))])
    images, wrong = given("data", data, case.clock.left(DATA), ([], {}), SLOW)
    case.add([*images[0], *wrong])
    for what, look, seconds in (("checkpoints", begin(lambda: alone.room(config, images[1])), DATA), ("W&B", web, WEB)):
        found, wrong = given(what, look, case.clock.left(seconds), [], SLOW)
        case.add([*found, *wrong])


def _other(case: Case) -> int:
    """Of a process that the main one speaks for, unless they cannot meet."""
    try:
        _together(case)
        code = int(case.share("verdict", None))
        case.meeting.tell("end", True)
    except Interrupted:
        raise
    except PipelineError as error:
        case.add([_of(case, _trouble("rendezvous", error))])
        for finding in [finding for finding in case.found if finding.wrong]:
            print(f"pipeline: {finding.line}", file=sys.stderr, flush=True)
        time.sleep(case.clock.left(LINGER))  # launchers end all when one has failed, and the main process has more to say
        return 1
    return code


def _trouble(what: str, error: PipelineError) -> Finding:
    wrong, _, cure = str(error).partition("; ")
    return Finding(what, wrong=wrong, cure=cure)


def _together(case: Case) -> None:
    """What all processes look at, each in its turn.

    Raises:
        PipelineError: this one cannot meet the others.
    """
    facts = alone.facts(case.config, case.launch, case.threads)
    look = begin(lambda: alone.devices(case.config))
    facts["device"], wrong = given(
        "devices", look, case.clock.left(DEVICE), {}, "importing torch or asking its devices takes for ever there"
    )
    case.add([_of(case, finding) for finding in wrong])
    _meet(case)
    everyone = case.gather("facts", [facts, [asdict(finding) for finding in case.found if finding.wrong]], REACH)
    if case.launch.is_main:
        case.names = {rank: who(told) for rank, (told, _) in everyone.items()} if case.launch.size > 1 else {0: ""}
        for rank, (_, found) in everyone.items():
            case.add([Finding(**finding) for finding in found] if rank else [])
        case.add(judged(case.config, [told for told, _ in everyone.values()]))
    if case.share("facts of all", len(everyone) == case.launch.size):
        _folders(case)
        if case.launch.size > 1:
            _clocks(case)
            _sums(case)


def _meet(case: Case) -> None:
    from pipeline.runtime import probe

    if case.launch.size == 1:
        case.meeting = probe.Alone()
        return
    began = time.monotonic()
    seconds = case.clock.left(REACH)
    address, port = probe.place()
    look = begin(lambda: probe.Store(case.launch, seconds))  # which waits for ever for the answer of another's server
    try:
        case.meeting = look.result(seconds + 1)
    except TimeoutError:
        raise PipelineError(f"{address}:{port} answers, but not as rank 0 does; {probe.ANOTHER}") from None
    case.add([Finding("rendezvous", f"{address}:{port} reached in {time.monotonic() - began:.1f} s")])


def _of(case: Case, finding: Finding) -> Finding:
    return Finding(finding.what, finding.value, finding.wrong, finding.cure, case.name)


def _folders(case: Case) -> None:
    asked = folders.trials(case.config) if case.launch.is_main else []
    made: list[Trial] = []
    try:
        for trial in asked:
            look = begin(lambda trial=trial: [*folders.tried(case.config, trial)])  # type: ignore[misc]
            found, wrong = given(trial.what, look, case.clock.left(FOLDER), [], SLOW)
            case.add([*found, *wrong])
            if not any(finding.wrong for finding in (*found, *wrong) if finding.what == trial.what):
                made.append(trial)
        for told in case.share("trials", [trial.told() for trial in made]):
            _visit(case, Trial(**told))
    finally:
        given("", begin(lambda: folders.removed(case.config, asked)), case.clock.left(FOLDER), None)


def _visit(case: Case, trial: Trial) -> None:
    """One after the other: see it, write to it, all want one name."""
    look = begin(lambda: folders.visited(case.config, trial, case.launch.rank, case.name))
    (found, ahead), wrong = given(trial.what, look, case.clock.left(FOLDER), ([], 0.0), SLOW)
    told = [asdict(_of(case, finding)) for finding in (*found, *wrong)]
    visits = case.gather(f"visit of {trial.what}", [told, ahead], FOLDER)
    well = {rank: case.names[rank] for rank, (found, _) in visits.items() if not found}
    case.add([Finding(**finding) for found, _ in visits.values() for finding in found])
    if case.launch.is_main:
        case.add([*folders.unseen(case.config, trial, well)])
    for rank, (_, seconds) in visits.items():
        if abs(seconds) > SKEW:
            case.add([_skew(f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} that of {trial.what}", case.names[rank])])
    if case.share(f"race in {trial.what}", len(well) == case.launch.size):
        outcome, _ = given("rename", begin(lambda: folders.raced(case.config, trial, case.launch.rank)), FOLDER, "no answer")
        case.add([*folders.judged_race(trial, case.gather(f"end of the race in {trial.what}", outcome, FOLDER), [*case.names.values()])])


def _skew(wrong: str, name: str) -> Finding:
    return Finding("clock", wrong=wrong, cure="synchronise the clocks of the nodes (chrony, ntpd)", who=name)


def _clocks(case: Case) -> None:
    """How far apart they are: all look when the main process says so."""
    least = dict.fromkeys(case.names, float("inf"))
    for tick in range(TICKS):
        case.gather(f"readiness {tick}", True, FOLDER)
        case.share(f"now {tick}", True)
        times = case.gather(f"clock {tick}", time.time(), FOLDER)
        for rank, seconds in times.items():
            least[rank] = min(least[rank], seconds - times.get(0, seconds), key=abs)
    for rank, seconds in least.items():
        if abs(seconds) > SKEW:
            case.add([_skew(f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} that of rank 0", case.names[rank])])
    if case.launch.is_main:
        case.add([Finding("clock", f"within {max(map(abs, least.values())):.3f} s on all")])


def _sums(case: Case) -> None:
    from pipeline.doctor.together import summed

    cure = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network between the nodes; NCCL_DEBUG=INFO says more"
    look = begin(lambda: summed(case.config, case.launch, case.threads, SUMS))
    found, wrong = given("all-reduce", look, case.clock.left(SUMS), [], cure)
    others = case.gather("all-reduce", [asdict(_of(case, each)) for each in (*found, *wrong) if each.wrong], SUMS)
    case.add([*found, *(Finding(**each) for found in others.values() for each in found)] if case.launch.is_main else [])


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a signal be an exception here, so that what was made is removed."""

    def leave(number: int, _: FrameType | None) -> None:
        raise Interrupted("stopped while looking; nothing was changed", exit_code(number))

    before = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
