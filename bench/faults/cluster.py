"""Jobs of a real SLURM that are warned, preempted, cancelled, requeued, lose a node or the controller, and end as if nothing had been.

    python -m bench.faults.cluster [--cases 3] [--only KIND --case K]

Each case has a cluster of its own (tests/cluster.py, four nodes), on which `pipeline submit` starts a run on two: twenty seconds of
training, with checkpoints and W&B offline. What came out must be what comes out undisturbed, bit for bit; told to W&B as one
run, each point once; `pipeline status` must say that it is done, and no process may be left. Cases are drawn from (seed, kind, k).
"""

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tracking
from cluster import cluster, missing

from bench.faults import paces
from bench.faults.blows import KINDS, MOMENTS, NODES, Blow
from bench.faults.jobs import FURTHER, Job, described, pipeline, place, processes, send
from bench.faults.paces import Pace, spread
from bench.faults.report import Row, report

SEED = 0
AT_ONCE = 4
LEFT = 30.0  # seconds after its end in which all that a run has started has ended


@dataclass(frozen=True)
class Outcome:
    kind: str
    case: int
    what: str
    wrong: Sequence[str]
    lives: int
    restarts: Sequence[Pace]

    @property
    def failures(self) -> list[str]:
        return [f"--only {self.kind!r} --case {self.case}: {self.what}: {wrong}" for wrong in self.wrong]


def results(folder: Path) -> tuple[bytes, bytes]:
    run = folder / "runs/tiny"
    return (run / "train/weights.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


@contextlib.contextmanager
def submitted(work: Path, *words: str) -> Iterator[Job]:
    """A job on a cluster of its own, and no process of it afterwards."""
    (work / "slurm").mkdir(parents=True)
    with cluster(work / "slurm", NODES, FURTHER) as started:
        job = Job(started, place(work / "run"), words)
        try:
            job.submit()
            yield job
        finally:
            job.closed.set()
            started.call("scancel", job.number)
            send(9, processes(job.folder))


def undisturbed(work: Path, *words: str) -> tuple[bytes, bytes]:
    with submitted(work, *words) as job:
        assert job.end() == "COMPLETED", job.log
        assert (wrong := left_wrong(job)) == [], wrong
        return results(job.folder)


def carried_out(kind: str, case: int, whole: Future[tuple[bytes, bytes]], work: Path, *words: str) -> Outcome:
    draw = random.Random(f"{SEED}/{kind}/{case}")
    what, wrong, blow = "", list[str](), Blow("nothing", 0)
    with submitted(work, *words, *(["--partition", "low"] if kind == "preemption" else [])) as job:
        try:
            blow = KINDS[kind](job, MOMENTS[(case + [*KINDS].index(kind)) % len(MOMENTS)], draw)
            what = blow.what
            ended = job.end()
            wrong += [f"the job is {ended}: {job.log[-500:]}"] if ended != "COMPLETED" else []
            wrong += blow.afterwards() + left_wrong(job)  # what tells W&B may wait for what is frozen
            both = zip(("weights.safetensors", "metrics.jsonl"), results(job.folder), whole.result(), strict=True)
            wrong += [f"{name} differs" for name, one, other in both if one != other]
        except (AssertionError, OSError) as error:
            wrong += [f"{type(error).__name__}: {error}"]
        lives = job.lives()
        (work / "log.txt").write_text("\n".join(f"{at:.2f} {text}" for at, text in job.lines))
    return Outcome(kind, case, what, wrong, len(lives), paces.restarts(lives, blow.at))


def left_wrong(job: Job) -> list[str]:
    """What is wrong with the run of a job that has ended, but for its bits."""
    folder, wrong = job.folder, list[str]()
    deadline = time.time() + LEFT
    while (left := processes(folder)) and time.time() < deadline:
        time.sleep(0.05)
    wrong += [f"left: {'; '.join(described(left))}"] if left else []
    told = pipeline(job.cluster, folder, "status", "runs/tiny/job.yaml").splitlines()
    wrong += [] if told[0].startswith("runs/tiny: done at ") else [f"status says {told[0]!r}"]
    files = tracking.lives(folder)
    ids = {tracking.run_id(file) for file in files}
    wrong += [] if len(ids) == 1 else [f"{len(ids)} runs of W&B"]
    points, record = tracking.points(*files), tracking.of_record(folder)
    lost, doubled = sum((record - points).values()), sum((points - record).values())
    wrong += [f"W&B: {lost} of {record.total()} points lost, {doubled} too many"] if lost or doubled else []
    return wrong


def campaign(chosen: Sequence[tuple[str, int]], work: Path, *words: str) -> Iterator[Outcome]:
    """These cases; of those that failed the folder stays."""
    lock = threading.Lock()

    def one(pair: tuple[str, int]) -> Outcome:
        kind, case = pair
        folder = work / f"{[*KINDS].index(kind)}-{case}"
        outcome = carried_out(kind, case, whole, folder, *words)
        with lock:
            print(f"{kind} {case}: {outcome.what}, {outcome.lives} lives: {'; '.join(outcome.wrong) or 'as undisturbed'}", flush=True)
        if not outcome.wrong:
            shutil.rmtree(folder)
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        whole = pool.submit(undisturbed, work / "whole", *words)
        yield from pool.map(one, chosen)


def rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.kind].append(outcome)
    for kind, group in groups.items():
        restarts = [pace for outcome in group for pace in outcome.restarts]
        yield {
            "kind": kind,
            "cases": len(group),
            "as undisturbed": sum(not outcome.wrong for outcome in group),
            "lives": sum(outcome.lives for outcome in group),
            "s from the old life's end to the first line of the next": spread([pace.cluster for pace in restarts]),
            "s from there to its first new steps": spread([pace.ours for pace in restarts]),
            "runs": [outcome.what for outcome in group],
            "failures": [failure for outcome in group for failure in outcome.failures],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3, help="of each kind")
    parser.add_argument("--only", metavar="KIND", default="", help="these alone, of which the name begins so; their results are not kept")
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--starts", type=int, default=5, help="of the starts and restarts that are timed, beside no other job")
    options = parser.parse_args()
    if why := missing():
        sys.exit(why)
    work = Path(tempfile.mkdtemp(prefix="cluster-"))
    numbers = range(options.cases) if options.case is None else [options.case]
    outcomes = list[Outcome]()
    with contextlib.suppress(KeyboardInterrupt):  # what there is counts
        for outcome in campaign([(kind, case) for case in numbers for kind in KINDS if kind.startswith(options.only)], work):
            outcomes.append(outcome)
    failed = any(outcome.wrong for outcome in outcomes)
    if not options.only and options.case is None:
        report("cluster", [*rows(outcomes), *paces.rows(work / "paces", options.starts)], seed=SEED, at_once=AT_ONCE)
    if failed:
        print(f"what failed is kept in {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
    return failed


if __name__ == "__main__":
    sys.exit(main())
