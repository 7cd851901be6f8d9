"""Deliberate bugs, one at a time, in a copy of the package: the tests that must notice each.

python -m bench.faults.mutants [--only WORD]   those with WORD in their description
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.faults.report import report

ROOT = Path(__file__).parents[2]
COPIED = ("pipeline", "tests", "bench", "launch", "pyproject.toml")
PATIENCE = 150  # seconds; a mutant that makes processes wait for each other is noticed by that


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str  # of the package
    old: str  # found there once
    new: str
    tests: tuple[str, ...]  # as pytest takes them

    def source(self, root: Path) -> str:
        """The file with the bug.

        Raises:
            ValueError: what is to be replaced is not there once.
        """
        text = (root / "pipeline" / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.what}: pipeline/{self.file} has {self.old!r} {text.count(self.old)} times; it must be there once")
        return text.replace(self.old, self.new)


CHECKPOINTS, FILES = ("tests/test_state.py",), ("tests/test_files.py",)
PLAN, DISK, STATE, BATCHES, TRAIN, UPDATE = (
    "tests/test_batch_plan.py",
    "runtime/files.py",
    "learning/state.py",
    "data/batches.py",
    "stages/train.py",
    "stages/update.py",
)
WORLDS = "tests/test_world_size.py::test_same_curve_weights_and_counts[two processes]"
SPLITS = "tests/test_splits.py"
HARMED = "tests/test_freshness.py::test_a_damaged_artifact_is_noticed_named_and_made_again[prepare/samples.png]"


def plan(holds: str) -> tuple[str, ...]:
    return (f"tests/test_batch_plan.py::test_over_any_plan[{holds}]",)


WEIGHS = plan("every_image_weighs_one_in_the_batch")
GOING_ON = plan("going_on_at_any_step_is_going_through")

MUTANTS = (
    Mutant("nothing is synced", DISK, "        os.fsync(descriptor)", "        pass", FILES),
    Mutant("a file is not synced", DISK, "*(pool.submit(sync, partial / name) for name in names)]", "]", FILES),
    Mutant("a folder is not synced", DISK, "(partial / MANIFEST, *_folders(partial, names))", "(partial / MANIFEST,)", FILES),
    Mutant(
        "a manifest is not synced",
        DISK,
        "(partial / MANIFEST, *_folders(partial, names))",
        "_folders(partial, names)",
        FILES,
    ),
    Mutant("a folder is renamed but not its name synced", DISK, "    sync(final.parent)", "    pass", FILES),
    Mutant("a file is written in place", DISK, 'partial.open("wb")', 'path.open("wb")', FILES),
    Mutant("a manifest is believed without its digest", DISK, "!= _digest(values)", '== ""', FILES),
    Mutant("a journal is not cut at resume", "runtime/journal.py", 'if line["step"] <= step', "", FILES),
    Mutant("damage is not looked for at restore", STATE, '(broken := files.damage(path, manifest["outputs"]))', "broken", CHECKPOINTS),
    Mutant(
        "the oldest checkpoint is gone on from",
        STATE,
        '.glob("step-*"), reverse=True',
        '.glob("step-*"), reverse=False',
        CHECKPOINTS,
    ),
    Mutant("retention removes the new one", STATE, "here + 1 - keep", "here + 2 - keep", CHECKPOINTS),
    Mutant("the record is not compared", STATE, "if not files.begins_with(", "if () and not files.begins_with(", CHECKPOINTS),
    Mutant("the position is one too far after resume", STATE, '= int(manifest["step"]),', '= int(manifest["step"]) + 1,', CHECKPOINTS),
    Mutant("resume forgets the tally", STATE, "tally.sums.copy_(", "tally.sums.mul_(0 * ", CHECKPOINTS),
    Mutant("each process counts the tally of all", STATE, "tallies.sum(0) * (rank == 0)", "tallies.sum(0)", CHECKPOINTS),
    Mutant("best weights are not restored", STATE, '(path / "best.safetensors").exists()', "False", CHECKPOINTS),
    Mutant("the average is not restored", STATE, '(path / "average.safetensors").exists()', "False", CHECKPOINTS),
    Mutant("moments are not restored", STATE, '"state": tensors}', '"state": {}}', CHECKPOINTS),
    Mutant("the scaler is not saved", STATE, '"scaler": state.scaler.state_dict()', '"scaler": {"scale": 2.0**16}', CHECKPOINTS),
    Mutant("the average is left in the weights", STATE, "value.copy_(before[name])", "pass", CHECKPOINTS),
    Mutant("the mean of means", UPDATE, "world.virtual / recipe.batch_size", "1 / len(losses) / len(parts)", WEIGHS),
    Mutant("the mean over processes is not undone", UPDATE, "/ recipe.batch_size)))", "/ recipe.batch_size / world.size)))", WEIGHS),
    Mutant("the last part is not exchanged", UPDATE, "part is parts[-1]", "part is parts[0]", WEIGHS),
    Mutant("the order depends on the rank", BATCHES, "= batch_size, seed, steps,", "= batch_size, seed + world.rank, steps,", WEIGHS),
    Mutant(
        "each process draws its own augmentation",
        BATCHES,
        "random(self._seed, step, AUGMENT)",
        "random(self._seed + int(np.ravel(self._own[0])[0]), step, AUGMENT)",
        GOING_ON,
    ),
    Mutant(
        "batches made as one are those of the next step",
        BATCHES,
        "_seed, start, count)",
        "_seed, start + 1, count)",
        ("tests/test_batches.py",),
    ),
    Mutant(
        "what waits to be counted is not",
        "learning/metrics.py",
        "        self.settle()\n        return",
        "        return",
        ("tests/test_metrics.py",),
    ),
    Mutant("mixed images are drawn anew", BATCHES, "random(self._seed, step, MIX)", "random(self._seed, id(self), MIX)", GOING_ON),
    Mutant("a share is one row too long", BATCHES, "count * (rank + 1) // size)", "-(-count * (rank + 1) // size))", WEIGHS),
    Mutant(
        "a ragged tail is evaluated with what came before",
        BATCHES,
        "rows = share(min(batch_size, count - start)",
        "start = max(0, min(start, count - batch_size)); rows = share(min(batch_size, count - start)",
        plan("evaluation_counts_every_image_once"),
    ),
    Mutant(
        "epochs have one order",
        BATCHES,
        "random(seed, epoch, ORDER)",
        "random(seed, 0, ORDER)",
        plan("each_epoch_has_every_image_once"),
    ),
    Mutant("dropout is the same in every step", "runtime/world.py", "{seed}/{step}/", "{seed}/0/", ("tests/test_batches.py",)),
    Mutant(
        "the schedule steps once a process",
        "stages/recipe.py",
        "Moment(state.step,",
        'Moment(state.step * int(__import__("os").environ.get("WORLD_SIZE", 1)),',
        (WORLDS,),
    ),
    Mutant(
        "to stop is not agreed on",
        "runtime/world.py",
        "= self.sum(told).tolist()",
        "= told.tolist()",
        ("tests/test_resume.py::test_several_processes_stop_at_one_step_and_go_on_exactly[2]",),
    ),
    Mutant("the report is of the validation split", "stages/evaluate.py", "split, space)", '"validation", space)', (SPLITS,)),
    Mutant("the test split selects", TRAIN, 'for split in ("train", "validation"))', 'for split in ("train", "test"))', (SPLITS,)),
    Mutant("validation images are trained on", "stages/prepare.py", "np.flatnonzero(~chosen))", "np.arange(len(chosen)))", (SPLITS,)),
    Mutant("the last weights are kept for the best", TRAIN, "last if found is None else state.best", "last", (SPLITS,)),
    Mutant("a stop is code 0", "errors.py", "exit_code = 75", "exit_code = 0", ("tests/test_resume.py::test_stopped_status_says_so",)),
    Mutant(
        "a loss that is no number goes on",
        "stages/record.py",
        'if not math.isfinite(means["loss"])',
        "if False",
        ("tests/test_nonfinite.py", "-k", "next_line"),
    ),
    Mutant("a damaged artifact is believed", "runtime/manifests.py", "files.damage(place, manifest.outputs)", "broken", (HARMED,)),
    Mutant(
        "what a stage is made from is not looked at",
        "runtime/manifests.py",
        "reasons |= value.reasons()",
        "value.reasons()",
        ("tests/test_freshness.py::test_each_stage_says_what_changed",),
    ),
    Mutant(
        "a damaged export predicts",
        "runtime/checksums.py",
        'return "" if found == listed else',
        'return "" if found else',
        ("tests/test_export.py::test_a_file_that_is_opened_is_checked_before[model.onnx]",),
    ),
)


def copied(folder: Path) -> Path:
    """The package, its tests and benchmarks."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def tested(root: Path, tests: Iterable[str]) -> tuple[int | None, str]:
    """Pytest's exit code, None if it had to be ended, and what it printed."""
    options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=line"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}  # a stale one would hide the mutant
    started = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with started as process:
        try:
            output = process.communicate(timeout=PATIENCE)[0]
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that wait for each other


def row(root: Path, mutant: Mutant) -> dict[str, Any]:
    """Whether the tests notice `mutant`, and which does."""
    path, began = root / "pipeline" / mutant.file, time.monotonic()
    whole = path.read_text()
    path.write_text(mutant.source(root))
    code, output = tested(root, mutant.tests)
    path.write_text(whole)
    killer = "has to be ended" if code is None else ", ".join(re.findall(r"^(?:FAILED|ERROR) \S*::(.*?)(?: - .*)?$", output, re.MULTILINE))
    killed = code in (None, 1) and bool(killer)
    failures = [] if killed else [f"{mutant.what}: survives, code {code}: {' '.join(output.split())[-300:]}"]
    return {"mutant": mutant.what, "killed by": killer, "seconds": round(time.monotonic() - began, 1), "failures": failures}


def campaign(mutants: Sequence[Mutant]) -> list[dict[str, Any]]:
    """A row for each mutant, after one for the package as it is, which the same tests must pass."""
    with tempfile.TemporaryDirectory() as folder:
        root = copied(Path(folder))
        began, rows = time.monotonic(), []
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            code, output = tested(root, tests)
            if code != 0:
                rows.append({"failures": [f"without a mutant: {' '.join(tests)}: code {code}: {' '.join(output.split())[-300:]}"]})
        none = {"mutant": "none", "killed by": "", "seconds": round(time.monotonic() - began, 1)}
        return [none, *rows, *(row(root, mutant) for mutant in mutants)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD")
    chosen = [mutant for mutant in MUTANTS if parser.parse_args().only in mutant.what]
    rows = campaign(chosen)
    killed = sum(bool(row.get("killed by")) for row in rows)
    return report("mutants", rows, mutants=len(chosen), killed=killed)


if __name__ == "__main__":
    sys.exit(main())
