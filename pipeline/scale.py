"""How much faster several processes of this machine train than one: measured by turns, as a table and a picture.

The processes are started here, so many at a time, as torchrun would: `python -m pipeline.scale WORDS` is one of them.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, typed
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.plan import check, fetched
from pipeline.process import Process, measure, outcome
from pipeline.runtime.console import say, say_plainly
from pipeline.runtime.launch import StopFlag, prepare_process, read_launch
from pipeline.runtime.signals import die_with_parent, leave_at_signals

ROUNDS = 3
GOOD, BUSY = 0.8, 0.25  # efficiency; load a core
KINDS = {"weak": "a batch of its own for each", "strong": "one batch shared out"}
MEETING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Found = Mapping[str, Any]  # of one number of processes, as `pipeline.stages.scaling` gives it; or of all rounds, see `summed`


def scale(config: Config, words: Sequence[str], *, picture: Path, up_to: int | None, as_json: bool) -> int:
    """Measure 1, 2, 4, ... processes, each in every round; `words` are what `config` was made of.

    Raises:
        ConfigError: this is one of several processes already, or there is no number of images that a batch has.
    """
    if "RANK" in os.environ:
        raise ConfigError("scale starts the processes itself: run it without torchrun, accelerate or srun")
    if config.train.batch_size == "all":
        raise ConfigError("train.batch_size: all cannot be made larger for more processes; give a number")
    numbers = counts(up_to or _places(config))
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    rounds = [{count: _turn(words, count) for count in numbers} for _ in range(ROUNDS)]
    found = summed(rounds)
    say("\n".join(table(config, found)))
    if load > BUSY * cores:
        say(f"others were computing too (load {load:.1f} on {cores} cores): measure again when they are not")
    draw(found, picture)
    say(f"\n  curves   {picture}")
    if as_json:
        facts = {"rounds": ROUNDS, "device": rounds[0][1]["device"], "cores": cores, "load": load, "picture": str(picture.absolute())}
        say_plainly(json.dumps({**facts, "counts": found}))
    return 0


def counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def _places(config: Config) -> int:
    """GPUs, or cores that this process may use."""
    from pipeline.runtime import probe

    devices = probe.devices(config.run)
    return int(devices["seen"]) if devices["kind"] == "cuda" else len(os.sched_getaffinity(0))


def _turn(words: Sequence[str], count: int) -> Found:
    """What so many processes find, started and ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "pipeline.scale", *words, "run.trackers=[]", "run.processes=null"]
    with tempfile.TemporaryFile("w+") as output, contextlib.ExitStack() as running:
        started = []
        for rank in range(count):
            places = dict(zip(MEETING, (rank, count, rank, count), strict=False)) if count > 1 else {}
            environment = os.environ | meeting | {name: str(value) for name, value in places.items()}
            told = output if rank == 0 else subprocess.DEVNULL
            process = subprocess.Popen(command, env=environment, stdout=told, stderr=output)  # noqa: S603 (this program, as it was called)
            running.callback(_end, process)
            started.append(process)
        codes = [process.wait() for process in started]
        output.seek(0)
        lines = output.read().splitlines()
    if any(codes):
        said = next((line for line in lines if line.startswith("pipeline: ")), f"exit codes {codes}")
        mistake = {each.exit_code: each for each in (ConfigError, DataError)}.get(codes[0], PipelineError)
        raise mistake(f"{count} process{'es' * (count > 1)}: {said.removeprefix('pipeline: ')}")
    return dict(json.loads(next(line for line in reversed(lines) if line.startswith("{"))))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def work(words: Sequence[str]) -> int:
    """One of the processes: measure, and print it as JSON if it is the main one."""
    leave_at_signals()
    config = fetched(check(typed(words)))
    launch = read_launch(config.run)
    process = Process(launch, StopFlag(), prepare_process(config.run, launch), terminal=os.dup(2), last=contextlib.ExitStack())
    try:
        with process.last:
            found = measure(config, process, "scaling")
            if launch.is_main:
                say_plainly(json.dumps(found))
    except Exception as error:
        code, message = outcome(error)
        process.say(message)
        return code
    return 0


def summed(rounds: Sequence[Mapping[int, Found]]) -> list[dict[str, Any]]:
    """Of each number of processes the medians over all rounds; an efficiency is that beside one process in the same round."""
    return [{"processes": count, **{kind: _summed(kind, count, rounds) for kind in KINDS}} for count in rounds[0]]


def _summed(kind: str, count: int, rounds: Sequence[Mapping[int, Found]]) -> dict[str, Any]:
    ones, several = [each[1][kind] for each in rounds], [each[count][kind] for each in rounds]
    if refused := next((each["refused"] for each in (*several, *ones) if "refused" in each), ""):
        return {"refused": refused}
    speeds = [each["batch_size"] / each["seconds"] for each in several]
    efficiencies = [speed * one["seconds"] / one["batch_size"] / count for speed, one in zip(speeds, ones, strict=True)]
    return {
        "batch_size": several[0]["batch_size"],
        "threads": several[0]["threads"],
        "images_per_second": statistics.median(speeds),
        "efficiency": statistics.median(efficiencies),
        "efficiencies": efficiencies,
    }


def table(config: Config, found: Sequence[Found]) -> Iterator[str]:
    """At most 80 columns."""
    what = f"{config.train.model.name} on {config.data.source.name}, batch of {config.train.batch_size}"
    yield f"scale: {what}, median of {ROUNDS} rounds"
    yield f"{'':11}{KINDS['weak']:^34}{KINDS['strong']:^34}".rstrip()
    yield (f"{'processes':11}" + f"{'threads':>8}{'images/s':>12}{'efficiency':>13} " * 2).rstrip()
    for each in found:
        yield (f"{each['processes']:<11}" + "".join(_cells(each[kind]) for kind in KINDS)).rstrip()
    for kind, what in KINDS.items():
        most = max((each["processes"] for each in found if each[kind].get("efficiency", 0) >= GOOD), default=1)
        yield f"{what}: efficient ({GOOD:.0%} or more) on up to {most} process{'es' * (most > 1)}"
        refused = [each for each in found if "refused" in each[kind]]
        yield from (f"{each['processes']} processes, {what}: {each[kind]['refused']}" for each in refused)


def _cells(found: Found) -> str:
    if "refused" in found:
        return f"{'':8}{'not to be had':>25} "
    return f"{found['threads']:>8}{found['images_per_second']:>12,.0f}{found['efficiency']:>13.0%} "


def draw(found: Sequence[Found], picture: Path) -> None:
    """Images/s and efficiency against the number of processes, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pipeline.stages.report.theme import STYLE

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 4), layout="constrained")
        speed, efficiency = figure.subplots(1, 2)
        for kind, color in zip(KINDS, ("C0", "C1"), strict=True):
            points = [each for each in found if "refused" not in each[kind]]
            numbers = [each["processes"] for each in points]
            speed.plot(numbers, [each[kind]["images_per_second"] for each in points], marker="o", color=color, label=KINDS[kind])
            middles = [each[kind]["efficiency"] for each in points]
            ends = [[abs(edge(each[kind]["efficiencies"]) - each[kind]["efficiency"]) for each in points] for edge in (min, max)]
            efficiency.errorbar(numbers, middles, yerr=ends, marker="o", color=color, capsize=3)
        numbers, alone = [each["processes"] for each in found], found[0]["weak"].get("images_per_second", 0)
        speed.plot(numbers, [alone * number for number in numbers], color="gray", linestyle=(0, (3, 2)), label="in proportion")
        efficiency.axhline(GOOD, color="gray", linestyle=(0, (3, 2)))
        for axis, title in ((speed, "images/s"), (efficiency, "efficiency")):
            axis.set(xlabel="processes", title=title, xticks=numbers)
            axis.set_ylim(bottom=0)
        speed.legend(frameon=False)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, format="png", dpi=150)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(work(sys.argv[1:]))
