"""What all processes do together, one thing after the other: every one of them must take the same steps."""

import time
from dataclasses import asdict

from pipeline.doctor import folders, limits
from pipeline.doctor.case import SLOW, Case
from pipeline.doctor.findings import Finding, begin, given
from pipeline.doctor.folders import Trial

TICKS = 3  # of which the least difference counts: a process may be late to look at its clock


def try_folders(case: Case) -> None:
    asked = folders.trials(case.config) if case.launch.is_main else []
    made: list[Trial] = []
    try:
        for trial in asked:
            look = begin(lambda trial=trial: [*folders.tried(case.config, trial)])  # type: ignore[misc]
            found, wrong = given(trial.what, look, case.clock.left(limits.FOLDER), [], SLOW)
            case.add([*found, *wrong])
            if not any(finding.wrong for finding in (*found, *wrong) if finding.what == trial.what):
                made.append(trial)
        for told in case.share("trials", [trial.told() for trial in made]):
            _visit(case, Trial(**told))
    finally:
        given("", begin(lambda: folders.removed(case.config, asked)), case.clock.left(limits.FOLDER), None)


def _visit(case: Case, trial: Trial) -> None:
    """One after the other: see it, write to it, all want one name."""
    look = begin(lambda: folders.visited(case.config, trial, case.launch.rank, case.name))
    (found, ahead), wrong = given(trial.what, look, case.clock.left(limits.FOLDER), ([], 0.0), SLOW)
    told = [asdict(case.of(finding)) for finding in (*found, *wrong)]
    visits = case.gather(f"visit of {trial.what}", [told, ahead], limits.FOLDER)
    well = {rank: case.names[rank] for rank, (found, _) in visits.items() if not found}
    case.add([Finding(**finding) for found, _ in visits.values() for finding in found])
    if case.launch.is_main:
        case.add([*folders.unseen(case.config, trial, well)])
    for rank, (_, seconds) in visits.items():
        if abs(seconds) > limits.SKEW:
            case.add([_skew(f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} that of {trial.what}", case.names[rank])])
    if case.share(f"race in {trial.what}", len(well) == case.launch.size):
        look_again = begin(lambda: folders.raced(case.config, trial, case.launch.rank))
        outcome, _ = given("rename", look_again, case.clock.left(limits.FOLDER), "no answer")
        outcomes = case.gather(f"end of the race in {trial.what}", outcome, limits.FOLDER)
        case.add([*folders.judged_race(trial, outcomes, [*case.names.values()])])


def _skew(wrong: str, name: str) -> Finding:
    return Finding("clock", wrong=wrong, cure="synchronise the clocks of the nodes (chrony, ntpd)", who=name)


def compare_clocks(case: Case) -> None:
    """How far apart they are: all look when the main process says so."""
    least: dict[int, float] = {}
    for tick in range(TICKS):
        case.gather(f"readiness {tick}", True, limits.FOLDER)
        case.share(f"now {tick}", True)
        times = case.gather(f"clock {tick}", time.time(), limits.FOLDER)
        for rank, seconds in times.items():
            ahead = seconds - times.get(0, seconds)
            least[rank] = min(least.get(rank, ahead), ahead, key=abs)
    for rank, seconds in least.items():
        if abs(seconds) > limits.SKEW:
            case.add([_skew(f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} that of rank 0", case.names[rank])])
    if least:
        case.add([Finding("clock", f"within {max(map(abs, least.values())):.3f} s on all")])


def time_sums(case: Case) -> None:
    from pipeline.doctor.together import summed

    cure = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network between the nodes; NCCL_DEBUG=INFO says more"
    look = begin(lambda: summed(case.config, case.launch, case.threads, limits.SUMS))
    found, wrong = given("all-reduce", look, case.clock.left(limits.SUMS), [], cure)
    others = case.gather("all-reduce", [asdict(case.of(each)) for each in (*found, *wrong) if each.wrong], limits.SUMS)
    case.add([*found, *(Finding(**each) for found in others.values() for each in found)] if case.launch.is_main else [])
