"""An experiment as a job of SLURM, or an array of them, a seed each; its data may be prepared by a job before.

runs/<name>/job.yaml        the configuration as it was when it was submitted, so that files may be edited while the job waits
runs/<name>/job.sbatch      what was submitted; and prepare.sbatch, if there was one

Both, and the note of the jobs' ids, are written while the run folder is claimed: of two that submit it at once one is refused.
"""

import argparse
import contextlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config, dump, validated
from pipeline.credentials import hide
from pipeline.errors import ConfigError, PipelineError
from pipeline.plan import check_size
from pipeline.runtime import files, job
from pipeline.runtime.claims import Claim
from pipeline.runtime.console import say
from pipeline.runtime.folder import claimed
from pipeline.runtime.launch import check_strategy
from pipeline.seeds import check_apart, of_seed, together
from pipeline.slurm.script import Script, text
from pipeline.slurm.site import Site, read_site

SEEDS = 1000  # as many tasks as an array has where SLURM is not told otherwise
SAFE = r"[A-Za-z0-9_./][A-Za-z0-9_./@+=:,-]*"  # of a folder: as it is for bash, and for SLURM, to which % means more


def submit(config: Config, options: argparse.Namespace) -> None:
    """Write what is asked for into the run folder and submit it; or only print it.

    Raises:
        ConfigError: an option is wrong, or the run is queued or running; nothing has been written or submitted.
        PipelineError: SLURM has refused it.
    """
    _see_that_it_can_be_shared_out(config, options.nodes * (options.gpus_per_node or options.tasks_per_node))
    seeds = _seeds(options.array)
    if seeds:
        check_apart(config)  # tasks are given the environment of sbatch
    place = together(config) if seeds else config.run.folder / config.run.name
    scripts = _scripts(config, place, seeds, options, read_site())
    dependencies = _dependencies(options.after)
    if options.dry_run:
        print("\n".join(scripts.values()), end="")
        return
    job.call("sbatch", "--version")  # before anything is written
    typed = hide(shlex.join(["pipeline", *sys.argv[1:]]))
    parts = [(place, ""), *((_folder(of_seed(config, seed)), f"_{seed}") for seed in seeds)]
    with contextlib.ExitStack() as held:
        claims = [_reserved(folder, held) for folder, _ in parts]
        for name, content in {"job.yaml": dump(config), **scripts}.items():
            files.write_whole(place / name, content, aside=claims[0].place)
        jobs = _sent([place / name for name in scripts], dependencies)
        for claim, (folder, task) in zip(claims, parts, strict=True):
            job.note(folder, [*jobs[:-1], jobs[-1] + task], typed, aside=claim.place)
    job.call("scontrol", "release", ",".join(jobs))  # not before: they claim the folders themselves
    say(_told(place, jobs, seeds))


def _see_that_it_can_be_shared_out(config: Config, processes: int) -> None:
    asked = config.run.processes
    if asked not in (None, processes):
        raise ConfigError(f"run.processes: {asked}, but the job would start {processes}; leave it out, or ask for as many tasks")
    check_size(config, processes)
    check_strategy(config.run.strategy, processes)


def _scripts(config: Config, place: Path, seeds: Sequence[int], options: argparse.Namespace, site: Site) -> dict[str, str]:
    """File name -> text, in the order in which they are to run."""
    if not re.fullmatch(SAFE, str(place)):
        raise ConfigError(f"run.folder: {str(place)!r} cannot stand in a script of SLURM; use letters, digits and _ . / @ + = : , -")
    words = (str(place / "job.yaml"),)
    shared = {
        "name": config.run.name,
        "log": str(place / "job.log"),
        "time": options.time,
        "account": options.account or site.account,
        "site": site,
    }
    asked = {
        "title": "An experiment" if not seeds else "Seeds of an experiment",
        "command": "run",
        "words": words,
        "nodes": options.nodes,
        "gpus_per_node": options.gpus_per_node,
        "tasks_per_node": options.gpus_per_node or options.tasks_per_node,
        "cpus_per_task": options.cpus_per_task or site.cpus_per_task,
        "partition": options.partition or site.partition,
        "seeds": f"{seeds[0]}-{seeds[-1]}" if seeds else "",
        **({"log": str(place / "seed-%a" / "job.log")} if seeds else {}),
    }
    before = {
        "title": "The data of an experiment",
        "command": "prepare",
        "words": (*words, "--seed", str(seeds[0])) if seeds else words,
        "cpus_per_task": options.cpus_per_task or site.cpus_per_task,
        "partition": options.prepare_partition or site.prepare_partition,
    }
    found = {"prepare.sbatch": text(validated(Script, shared | before, "submit: "))} if before["partition"] else {}
    return found | {"job.sbatch": text(validated(Script, shared | asked, "submit: "))}


def _seeds(array: str) -> Sequence[int]:
    """Of `seeds=0-4`.

    Raises:
        ConfigError: it is none such.
    """
    if not array:
        return ()
    found = re.fullmatch(r"seeds=(\d{1,9})-(\d{1,9})", array)
    seeds = range(int(found[1]), int(found[2]) + 1) if found else ()
    if not 0 < len(seeds) <= SEEDS:
        raise ConfigError(f"submit: --array {array!r} is not seeds=FIRST-LAST, as in seeds=0-4, of {SEEDS} at most")
    return seeds


def _dependencies(after: Sequence[str]) -> list[str]:
    if bad := [number for number in after if not re.fullmatch(r"\d+(_\d+)?", number)]:
        raise ConfigError(f"submit: --after {bad[0]!r} is no job's id, as 123 or 123_4")
    return list(after)


def _folder(config: Config) -> Path:
    return config.run.folder / config.run.name


def _reserved(folder: Path, held: contextlib.ExitStack) -> Claim:
    """The claim on a run folder, as long as `held`.

    Raises:
        ConfigError: the run is at work, or queued.
    """
    _see_that_none_is_going(folder)
    claim = claimed(folder)
    held.callback(claim.leave)
    _see_that_none_is_going(folder)  # nor has been submitted in between
    return claim


def _see_that_none_is_going(folder: Path) -> None:
    if going := job.active(folder):
        raise ConfigError(
            f"{folder} is submitted already, as job {going[0].number}: {going[0]}; wait for it, `pipeline cancel {folder}`, "
            "or choose another run.name"
        )


def _sent(scripts: Sequence[Path], after: Sequence[str]) -> list[str]:
    """The ids of the jobs, each of which waits for the one before to end well; and all of them to be released."""
    jobs: list[str] = []
    for script in scripts:
        earlier = ":".join([*after, *jobs])
        waits = [f"--dependency=afterok:{earlier}", "--kill-on-invalid-dep=yes"] if earlier else []
        try:
            jobs.append(job.call("sbatch", "--parsable", "--hold", *waits, str(script)).strip().partition(";")[0])
        except PipelineError:
            for number in jobs:
                job.call("scancel", number)
            raise
    return jobs


def _told(place: Path, jobs: Sequence[str], seeds: Sequence[int]) -> str:
    first = f"job {jobs[-1]} is submitted" + (f", to follow job {jobs[0]}, which prepares the data" if len(jobs) > 1 else "")
    watch = {
        "script": f"{place}/job.sbatch",
        "log": f"pipeline logs {place} -f",
        "status": f"pipeline status {place}/job.yaml" + (f" --seed {seeds[0]}" if seeds else ""),
        "queue": f"squeue --jobs={','.join(jobs)}",
        "stop": f"pipeline cancel {place}",
    }
    return "\n".join([first, *(f"  {what:8} {how}" for what, how in watch.items())])
