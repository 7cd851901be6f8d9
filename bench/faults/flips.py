"""What is kept, harmed at random: noticed before use, the file named, and made good; beside what others notice.

python -m bench.faults.flips [--cases N] [--first K]   cases K to K + N - 1, and as many for each peer

A case harms a checkpoint, prepared data, a trained model or an export, and asks what reads it; every
21st goes through the command line to the end, and what comes out must be that of an undisturbed run.
"""

import argparse
import contextlib
import hashlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from conftest import TINY
from PIL import Image
from processes import launch
from safetensors.torch import save

from bench.faults import flips_peers, harms
from bench.faults.harms import Harm
from bench.faults.report import report
from pipeline.config import Config, RunConfig, load
from pipeline.data.batches import Images
from pipeline.learning import state as checkpoints
from pipeline.main import main as command
from pipeline.plan import check, prepared, status
from pipeline.runtime import checksums, files
from pipeline.runtime.launch import Launch, StopFlag
from pipeline.runtime.world import World
from pipeline.stages.recipe import Recipe, initial_state

CASES = 1000
WHOLE_WAY = 21  # one case in so many; no multiple of the number of targets
# With an average, moments and validations, so that a checkpoint has all its files.
RECIPE = [*TINY, "train.optimizer=adamw", "train.lr=0.003", "train.average={name: ema, decay: 0.9}", "run.keep=3", "run.device=cpu"]
STAGES = {"prepared data": "prepare", "trained model": "train", "export": "export"}
TARGETS = ("checkpoint", *STAGES)
ASKED, OPENED = ["predict", "runs/tiny", "image.png"], {"model.onnx", "model.json"}
EMPTY = MappingProxyType({"cases": 0, "noticed": 0, "file named": 0, "made good": 0, "silently wrong": 0, "seconds": 0.0})
UNFINISHED = re.compile(r"^(goes on where it stopped|begun before, but nothing was kept; starts again)$")


@dataclass(frozen=True)
class Outcome:
    noticed: bool  # before use
    named: bool
    made_good: bool  # by what was there before, by being made again, by a refusal in one line

    @property
    def good(self) -> bool:
        return self.noticed and self.named and self.made_good


class Kept:
    """A run that was stopped, `parts`, and the same to its end, `whole`; what is drawn for a case, and what must come of it."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        for name in ("whole", "parts"):
            (folder / name).mkdir()
        Image.new("L", (12, 12), 128).save(folder / "whole" / "image.png")
        assert launch(folder / "whole", ["run", *RECIPE]).code == 0
        assert launch(folder / "parts", ["train", *RECIPE], stop_at=30).code == 75
        self.results = results(folder / "whole")
        (self.training,) = (folder / "parts").glob("artifacts/train/*/checkpoints")
        self.journal = self.training.parent / "metrics.jsonl"
        self.answer = predict(folder / "whole")
        self.known = {name: self.restored(only=name)[2] for name in ["", *self.names]}

    @property
    def names(self) -> list[str]:
        """Of the checkpoints, the newest first."""
        return sorted((path.name for path in self.training.glob("step-*")), reverse=True)

    def config(self, name: str) -> Config:
        place = self.folder / name
        words = [word for word in RECIPE if "trackers" not in word]
        return check(load(None, [*words, f"run.folder={place}/runs", f"run.artifacts={place}/artifacts"]))

    def restored(self, only: str | None = None) -> tuple[str, str, str]:
        """The checkpoint that is gone on from, what is said, and a digest of the state; of a copy with that one alone, if asked."""
        config, said = self.config("parts"), io.StringIO()
        data = prepared(config)
        recipe = Recipe.of(config.train, data)
        state, _ = initial_state(recipe, data, Images(data.open("train"), self.world, [0.5], [0.5]), self.world)
        with tempfile.TemporaryDirectory() as copy, contextlib.redirect_stdout(said):
            if only:
                shutil.copytree(self.training / only, Path(copy) / "checkpoints" / only)
                shutil.copy(self.training.parent / "metrics.jsonl", copy)
            try:
                name = checkpoints.restore(state, self.training.parent if only is None else Path(copy), range(1), 1, {})
            except Exception as error:  # which a run would end with
                name = f"{type(error).__name__}: {error}"
        tensors = checkpoints.snapshot(state, torch.empty(0), wanted=True).tensors
        rest = [state.step, state.seconds, state.history, state.scaler.state_dict(), [tally.sums.tolist() for tally in state.tallies]]
        content = b"".join(key.encode() + save(tensors[key]) for key in sorted(tensors)) + json.dumps(rest).encode()
        return name, said.getvalue(), hashlib.sha256(content).hexdigest()


def results(folder: Path) -> dict[str, Any]:
    """Digests of all that a finished run in `folder` has made, but for the clock, the card, which tells times, and its own digest."""
    run = folder / "runs" / "tiny"
    found = {
        stage: json.loads((run / stage / files.MANIFEST).read_text())["outputs"] for stage in ("prepare", "train", "evaluate", "export")
    }
    for name in ("README.md", checksums.NAME):
        del found["export"][name]
    return found


def of_artifact(place: Path) -> list[Path]:
    """The files that make it up, and the manifest that lists them."""
    return [place / files.MANIFEST, *(place / name for name in json.loads((place / files.MANIFEST).read_text())["outputs"])]


def harm_checkpoints(kept: Kept, chance: random.Random) -> tuple[list[Path], list[Harm]]:
    """One, two or all three of the newest; and the record that they rely on, which may be longer than they say, but not shorter."""
    inside = {name: sorted((kept.training / name).iterdir()) for name in kept.names}
    harmed = [harms.draw(chance, inside[name]) for name in kept.names[: chance.randint(1, 3)]]
    if chance.random() < 0.1:
        size = kept.journal.stat().st_size
        harmed = [Harm("flip", kept.journal, kept.journal, chance.randrange(8 * size))]
    return [kept.journal, *(path for paths in inside.values() for path in paths)], harmed


def checkpoint(kept: Kept, chance: random.Random) -> tuple[Outcome, list[Harm]]:
    """What `restore` says and loads: the newest of which all is as it was, or nothing."""
    paths, harmed = harm_checkpoints(kept, chance)
    before = {path: path.read_bytes() for path in paths}
    record = {name: json.loads((kept.training / name / files.MANIFEST).read_text())["journal"]["size"] for name in kept.names}
    with harms.undone(paths):
        names = kept.names
        for harm in harmed:
            harm.do()
        other, now = harms.changed(paths, before), kept.journal.read_bytes()
        broken = {name: {path.name for path in other if path.parent.name == name} for name in names}
        for name in names:
            if now[: record[name]] != before[kept.journal][: record[name]]:
                broken[name] = broken[name] or {kept.journal.name}
        expected = next((name for name in names if not broken[name]), "")
        found, said, digest = kept.restored()
    passed = names[: names.index(expected) if expected else len(names)]
    lines = {name: next((line for line in said.splitlines() if f" {name} " in line), "") for name in passed}
    named = all(any(each in lines[name] for each in broken[name]) for name in passed)
    return Outcome(all(lines.values()) and bool(passed), named, (found, digest) == (expected, kept.known[expected])), harmed


def stage(kept: Kept, chance: random.Random, target: str) -> tuple[Outcome, list[Harm]]:
    """Whether the next run would make the stage again, and says why; and whether `predict` does as it should with an export."""
    config, name = kept.config("whole"), STAGES[target]
    place = (kept.folder / "whole" / "runs" / "tiny" / name).resolve()
    paths = of_artifact(place)
    before = {path: path.read_bytes() for path in paths}
    harm = harms.draw(chance, paths)
    with harms.undone(paths):
        harm.do()
        broken = {path.name for path in harms.changed(paths, before)}
        look = status(config)[name]
        refused = predicted(kept, *predict(kept.folder / "whole"), broken) if target == "export" else Outcome(True, True, True)
    assert look is not None
    again = look.manifest is None
    unlisted = harm.kind == "delete" and harm.path.name == files.MANIFEST  # then it is one that was never finished
    named = bool(UNFINISHED.match(look.why)) if unlisted else any(look.why.startswith(f"damaged: {each}") for each in broken)
    return Outcome(again and refused.noticed, named and refused.named, again and refused.made_good), [harm]


def predict(folder: Path) -> tuple[int, str]:
    """How it ends with the export in `folder`, and what it says; -1 with a traceback."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = command(ASKED)
        except Exception:
            code = -1
    return code, said.getvalue()


def predicted(kept: Kept, code: int, said: str, broken: set[str]) -> Outcome:
    """It refuses an export of which a file that it opens is broken, and names that; with any other it says what it always does."""
    if (code, said) == kept.answer:
        return Outcome(not broken & OPENED, True, True)
    return Outcome(code != 0, any(name in said for name in broken), code == 3 and said.count("\n") == 1)


def whole_way(kept: Kept, chance: random.Random, target: str) -> tuple[Outcome, list[Harm]]:
    """The same harm to a copy, and the command line: to the end, with the same bits, or refused."""
    source = "parts" if target == "checkpoint" or (target == "prepared data" and chance.random() < 0.5) else "whole"
    with tempfile.TemporaryDirectory(dir=kept.folder) as copy:
        folder = Path(copy) / "run"
        shutil.copytree(kept.folder / source, folder, symlinks=True)
        if target == "checkpoint":
            (training,) = folder.glob("artifacts/train/*/checkpoints")
            paths = sorted(path for path in max(training.glob("step-*")).iterdir())
        else:
            paths = of_artifact((folder / "runs" / "tiny" / STAGES[target]).resolve())
        before = {path: path.read_bytes() for path in paths}
        harm = harms.draw(chance, paths)
        harm.do()
        broken = {path.name for path in harms.changed(paths, before)}
        if target == "export" and chance.random() < 0.5:
            ended = launch(folder, ASKED)
            return predicted(kept, ended.code, ended.output, broken), [harm]
        ended = launch(folder, ["run", *RECIPE])
        said = [line for line in ended.output.splitlines() if "damaged" in line or UNFINISHED.match(line.partition(": ")[2])]
        named = any(name in line or harm.kind == "delete" for name in broken for line in said)
        return Outcome(bool(said), named, ended.code == 0 and results(folder) == kept.results), [harm]


def case(kept: Kept, number: int) -> tuple[str, Outcome, str]:
    """What case `number` harms, how it went, and how to see it again."""
    chance, target = random.Random(f"flips/{number}"), TARGETS[number % len(TARGETS)]
    to_the_end = number % WHOLE_WAY == 0
    if to_the_end:
        outcome, harmed = whole_way(kept, chance, target)
    elif target == "checkpoint":
        outcome, harmed = checkpoint(kept, chance)
    else:
        outcome, harmed = stage(kept, chance, target)
    how = f"case {number}, {target}{', to the end' * to_the_end}: {'; '.join(map(str, harmed))}: {outcome}"
    return f"{target}{', by the command line' * to_the_end}", outcome, how


@contextlib.contextmanager
def kept() -> Iterator[Kept]:
    """What the cases harm, in a folder of its own."""
    one = World(RunConfig(device="cpu"), Launch(), StopFlag(), precision="no", threads=1)
    with tempfile.TemporaryDirectory() as folder, one as world:
        yield Kept(Path(folder), world)


def campaign(harmed: Kept, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each target."""
    rows: dict[str, dict[str, Any]] = {}
    for number in numbers:
        began = time.monotonic()
        target, outcome, how = case(harmed, number)
        row = rows.setdefault(target, {"what": f"ours: {target}", **EMPTY, "failures": []})
        row["cases"] += 1
        row["noticed"] += outcome.noticed
        row["file named"] += outcome.named
        row["made good"] += outcome.made_good
        row["silently wrong"] += not outcome.noticed
        row["seconds"] += time.monotonic() - began
        row["failures"] += [] if outcome.good else [how]
    return [{**row, "seconds": round(row["seconds"], 1)} for _, row in sorted(rows.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.cases)
    with kept() as harmed:
        ours = campaign(harmed, numbers)
    return report("flips", [*ours, *flips_peers.flips(numbers)], first=options.first, cases=options.cases)


if __name__ == "__main__":
    sys.exit(main())
