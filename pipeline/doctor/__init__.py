"""Whether a run could begin: looked at on every process, each look for a bounded time; nothing is kept, and nothing left behind.

Processes meet at torch's store, as those of a run do, and tell the main one what they see; that one judges,
and says so. A process that cannot meet the others says so itself.
"""

import json
import os
import sys
import time
from dataclasses import asdict

from pipeline.config import Config
from pipeline.credentials import hide
from pipeline.doctor import alone, limits
from pipeline.doctor.case import SLOW, Case
from pipeline.doctor.findings import Clock, Finding, begin, given, is_hung, lines, merged
from pipeline.doctor.judge import judged, who
from pipeline.doctor.steps import compare_clocks, time_sums, try_folders
from pipeline.errors import PipelineError
from pipeline.plan import check_size
from pipeline.runtime.console import say, say_plainly
from pipeline.runtime.launch import prepare_process, read_launch
from pipeline.runtime.signals import interruptible

UNFIT = "choose another train.model or data.size; `pipeline model` shows what each layer gives"


def doctor(config: Config, *, as_json: bool) -> int:
    """Look at everything, and say it on the main process; 0 if all is well, else 1."""
    launch = read_launch(config.run)
    check_size(config, launch.size)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # it prints stacks where a connection ends; what matters is said here
    asked = os.environ.get("OMP_NUM_THREADS", "")
    case = Case(config, launch, prepare_process(config.run, launch), Clock(limits.ALL), asked)
    try:
        with interruptible("stopped while looking; nothing was changed"):
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
    except KeyboardInterrupt:
        for finding in case.found:
            say(finding.line)
        raise
    findings = merged(case.found)
    for line in lines(findings):
        say(line)
    code = int(any(finding.wrong for finding in findings))
    if as_json:
        say_plainly(json.dumps({"ok": not code, "processes": case.launch.size, "findings": [asdict(finding) for finding in findings]}))
    if case.meeting is not None and case.launch.size > 1:
        case.meeting.tell("verdict", code)
        case.meeting.hear("end", [*case.names][1:], limits.GONE)
    if len(case.names) < case.launch.size:
        time.sleep(case.clock.left(limits.LINGER))  # launchers end all when one has failed, and who could not come has more to say
    return code


def _look(case: Case) -> None:
    """At what all processes see, and at what the main one alone needs."""
    config = case.config
    web = begin(lambda: alone.web(config))
    data = begin(lambda: alone.data(config))
    try:
        _together(case)
    except PipelineError as error:
        case.add([case.of(_trouble("rendezvous", error))])
    images, wrong = given("data", data, case.clock.left(limits.DATA), ([], {}), SLOW)
    if wrong and not data.done():
        wrong = given("data", begin(lambda: alone.glance(config)), case.clock.left(limits.GLANCE), [])[0] or wrong
    case.add([*images[0], *wrong])
    if not wrong:
        found, wrong = given("model", begin(lambda: alone.model(config)), case.clock.left(limits.DATA), [], UNFIT)
        case.add([*found, *wrong])
    if not wrong:
        found, wrong = given("checkpoints", begin(lambda: alone.room(config, images[1])), case.clock.left(limits.DATA), [], SLOW)
        case.add([*found, *wrong])
    found, wrong = given("W&B", web, case.clock.left(limits.WEB), [], SLOW)
    case.add([*found, *wrong])


def _other(case: Case) -> int:
    """Of a process that the main one speaks for, unless they cannot meet."""
    try:
        _together(case)
        code = int(case.share("verdict", None))
        case.meeting.tell("end", True)
    except PipelineError as error:
        case.add([case.of(_trouble("rendezvous", error))])
        for finding in [finding for finding in case.found if finding.wrong]:
            print(f"pipeline: {hide(finding.line)}", file=sys.stderr, flush=True)
        time.sleep(case.clock.left(limits.LINGER))  # as above
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
    facts = alone.facts(case.config, case.launch, case.threads, case.asked)
    look = begin(lambda: alone.devices(case.config))
    facts["device"], wrong = given("devices", look, case.clock.left(limits.DEVICE), {}, SLOW)
    case.add([case.of(finding) for finding in wrong])
    if not look.done():  # whoever imports torch now would wait as well
        raise PipelineError("torch cannot be had, and without it nobody met; see above")
    _meet(case)
    everyone = case.gather("facts", [facts, [asdict(finding) for finding in case.found if finding.wrong]], limits.REACH)
    if case.launch.is_main:
        case.names = {rank: who(told) for rank, (told, _) in everyone.items()} if case.launch.size > 1 else {0: ""}
        for rank, (_, found) in everyone.items():
            case.add([Finding(**finding) for finding in found] if rank else [])
        case.add(judged(case.config, [told for told, _ in everyone.values()]))
    if case.share("facts of all", len(everyone) == case.launch.size):
        try_folders(case)
        if case.launch.size > 1:
            compare_clocks(case)
            time_sums(case)


def _meet(case: Case) -> None:
    from pipeline.runtime import probe

    if case.launch.size == 1:
        case.meeting = probe.Alone()
        return
    began = time.monotonic()
    seconds = case.clock.left(limits.REACH)
    address, port = probe.place()
    look = begin(lambda: probe.Store(case.launch, seconds))  # which waits for ever for the answer of another's server
    try:
        case.meeting = look.result(seconds + 2)
    except TimeoutError:
        raise PipelineError(f"{address}:{port} answers, but not as rank 0 does; {probe.ANOTHER}") from None
    case.add([Finding("rendezvous", f"{address}:{port} reached in {time.monotonic() - began:.1f} s")])
