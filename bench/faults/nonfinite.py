"""A loss or a gradient that is no number: python -m bench.faults.nonfinite [--cases N]

Each case breaks one step of a short training on one process (a NaN or an infinity, in the loss or in
a gradient), and looks at what all processes did, what was kept, and what the training came to.
"""

import argparse
import functools
import itertools
import json
import math
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import TINY
from processes import Ended, launch
from safetensors.numpy import load_file

from bench.faults.report import report

POLICIES = ("stop", "skip", "restore")
WORDS = (*TINY, "run.checkpoint_every=4", "run.keep=100", "train.average={name: ema, decay: 0.9}")


@dataclass(frozen=True)
class Case:
    policy: str
    where: str  # loss or gradient
    value: float
    steps: range  # from 0
    processes: int
    rank: int
    strategy: str


def cases(count: int) -> list[Case]:
    """`count` of all there are, every policy with every place in turn; drawn anew for a count, but always the same."""
    draw = random.Random(count)
    turns = itertools.cycle(itertools.product(POLICIES, ("loss", "gradient"), (math.nan, math.inf)))
    found = []
    for policy, where, value in itertools.islice(turns, count):
        processes = draw.choice([1, 2, 3])
        strategy = draw.choice(["ddp", "fsdp"]) if processes > 1 else "auto"
        step = draw.randrange(2, 60)
        found.append(Case(policy, where, value, range(step, step + 1), processes, draw.randrange(processes), strategy))
    return found


def breaks(rank: int, case: Case) -> None:
    """Let the process of the case find no number in its steps: in the logits, or in what comes back to them."""
    from pipeline.runtime.world import World
    from pipeline.stages import train

    real_update, real_forward, broken = train.update, World.forward, False  # type: ignore[attr-defined]

    def update(state: Any, *rest: Any, **measured: Any) -> bool:
        nonlocal broken
        broken = state.step in case.steps and rank == case.rank
        done, broken = real_update(state, *rest, **measured), False
        return done

    def forward(world: World, model: Any, images: Any) -> Any:
        logits = real_forward(world, model, images)
        if broken and case.where == "loss":
            return logits * case.value
        if broken:
            hook: Any = logits
            hook.register_hook(lambda gradient: gradient * case.value)
        return logits

    train.update, World.forward = update, forward  # type: ignore[assignment, attr-defined, method-assign]


def leaves_out(_: int, step: int) -> None:
    """The reference: a training to which that step was never shown."""
    from pipeline.stages import train

    real = train.update  # type: ignore[attr-defined]

    def update(state: Any, *rest: Any, **measured: Any) -> bool:
        if state.step != step:
            return real(state, *rest, **measured)
        state.step += 1
        return False

    train.update = update  # type: ignore[attr-defined]


def run(folder: Path, case: Case, before: Any) -> Ended:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = ["train", *WORDS, f"train.nonfinite={case.policy}", f"run.strategy={case.strategy}"]
    return launch(folder, words, processes=case.processes, before=before)


def wrong(case: Case, work: Path) -> str:
    """What is not as promised; "" if all is."""
    ended = run(work / "broken", case, functools.partial(breaks, case=case))
    for path in (work / "broken").glob("artifacts/train/*/checkpoints/step-*/*.safetensors"):
        if not all(math.isfinite(float(tensor.sum())) for tensor in load_file(path).values()):
            return f"{path.parent.name}/{path.name} holds what is no number"
    if case.policy == "stop":
        told = "training has diverged" in ended.output and "Traceback" not in ended.output
        return "" if told and set(ended.codes) == {4} else f"codes {ended.codes}: {ended.output[-300:]}"
    if set(ended.codes) != {0}:
        return f"codes {ended.codes}: {ended.output[-300:]}"
    left_out = [line["step"] for line in _lines(work / "broken") if "train/left_out" in line]
    if left_out != [case.steps.stop]:
        return f"left out {left_out}"
    if run(work / "reference", case, functools.partial(leaves_out, step=case.steps.start)).code:
        return "the reference failed"
    same = all(
        (work / "broken/runs/tiny" / name).read_bytes() == (work / "reference/runs/tiny" / name).read_bytes()
        for name in ("train/weights.safetensors", "metrics.jsonl")
    )
    return "" if same else "not what a training without that step comes to"


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]


def campaign(count: int) -> list[dict[str, Any]]:
    """A row a policy."""
    rows = {policy: {"train.nonfinite": policy, "cases": 0, "as promised": 0, "failures": []} for policy in POLICIES}
    with tempfile.TemporaryDirectory() as work:
        for number, case in enumerate(cases(count)):
            row: dict[str, Any] = rows[case.policy]
            trouble = wrong(case, Path(work))
            row["cases"] += 1
            row["as promised"] += not trouble
            row["failures"] += [f"case {number} of {count}, {case}: {trouble}"] if trouble else []
    return list(rows.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=60)
    asked = parser.parse_args().cases
    sys.exit(report("nonfinite", campaign(asked), cases=asked))
