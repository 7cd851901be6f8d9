"""What can be typed. Without the imports that take a moment: `--help`, or a word that is not understood, is answered at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipeline import __version__, errors
from pipeline.credentials import hide
from pipeline.wording import nearest

STAGES = ("prepare", "train", "evaluate", "export")
COMMANDS = {
    "run": "make everything: prepare, train, evaluate, export",
    "prepare": "raw images to splits in shards",
    "train": "until trained weights",
    "evaluate": "until the report on the test split",
    "export": "until the exported model (the same as run)",
    "seeds": "the whole pipeline for N seeds, one after the other; their mean, standard deviation and interval",
    "lr-find": "a learning rate range test, with a picture",
    "submit": "as a job of SLURM: the script is checked, written into the run folder and submitted",
    "bench": "how fast training is on this machine, where its time goes, and what would be faster: measured in about 20 seconds",
    "model": "the layers of the model: their shapes, parameters and operations",
    "doctor": "whether a run could begin, looked at on every process in less than a minute: code, devices, network, folders, clocks, data",
    "scale": "images/s on 1, 2, 4, ... processes of this machine, measured by turns, with a picture",
    "status": "which stages are fresh, which are not, and why; of a configuration, or of a run by its folder or name",
    "config": "print the resolved configuration",
}


class _Parser(argparse.ArgumentParser):
    """One that needs no more than a line for a mistake."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        where = f"{command}: " if command else ""
        self.exit(2, errors.shown(hide(f"pipeline: {where}{message.removeprefix('argument ')} (see `{self.prog} --help`)")) + "\n")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may come before and after flags, which argparse does not know of subcommands."""
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    commands = {name: command for name, command in _commands(parser).items() if name != "again"}
    asked = next((word for word in words if not word.startswith("-")), "")
    if asked and asked not in _commands(parser):
        parser.error(f"no command {asked!r}{nearest(asked, commands)}")
    options, more = parser.parse_known_args(words)
    if strange := [word for word in more if word.startswith("-") or not hasattr(options, "words")]:
        command = _commands(parser)[asked]
        flags = [flag for action in command._actions for flag in action.option_strings if flag.startswith("--")]
        near = nearest(strange[0].partition("=")[0], flags) if strange[0].startswith("--") else ""
        command.error(f"{' '.join(strange)} is not understood{near}")
    if more:
        options.words += more
    return options


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(actions).choices)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pipeline",
        description="Train image classifiers: prepare, train, evaluate, export. The same command again goes on, or finds all fresh.",
        epilog=f"exit codes:\n{(errors.__doc__ or '').partition('exit code.')[2].rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(force="", json=False, seed=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "seeds":
            command.add_argument("count", type=_count, metavar="N", help="train.seed and the N - 1 after it")
        command.add_argument("words", nargs="*", metavar="CONFIG.yaml | section.key=value", help="a file first, then overrides")
        command.add_argument("--data-dir", type=Path, metavar="DIR", help="the same as data.root=DIR")
        if name in STAGES or name in ("run", "status"):
            command.add_argument(
                "--seed", type=_index, metavar="K", help="this one of `pipeline seeds`: train.seed=K, in a folder of its own"
            )
        if name == "submit":
            _add_resources(command)
        if name in STAGES or name == "run":
            command.add_argument("--force", type=_stage, metavar="STAGE", help="make this stage again, fresh or not")
        if name in STAGES or name in ("run", "bench", "doctor", "scale"):
            command.add_argument("--json", action="store_true", help="print the results as JSON, in the last line")
        if name == "scale":
            command.add_argument("--up-to", type=_count, metavar="N", help="processes; as many as GPUs, or cores, if not given")
            command.add_argument("--out", type=Path, default=Path("scaling.png"), metavar="FILE.png", help="where the curves are drawn")
    _add_sweep_and_jobs(commands)
    _add_runs(commands)
    return parser


def _add_sweep_and_jobs(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """A search, and what there is to a job of SLURM once it is submitted."""
    text = "a grid or random search of a sweep file of W&B, without its service: one trial after the other, in processes of their own"
    command = commands.add_parser("sweep", help=text, description=text)
    command.add_argument("file", type=Path, metavar="SWEEP.yaml", help="as configs/sweep.yaml")
    command.add_argument("words", nargs="*", metavar="section.key=value", help="overrides, for every trial")
    command.add_argument("--count", type=_count, metavar="N", help="trials at most")
    command.add_argument("--seed", type=_index, default=0, metavar="N", help="of what a random search draws")
    command.add_argument("--data-dir", type=Path, metavar="DIR", help="the same as data.root=DIR")
    command = commands.add_parser("again")  # for the scripts of jobs: whether one that was stopped is to be started again
    command.add_argument("words", nargs="*")
    command.add_argument("--data-dir", type=Path)
    command.add_argument("--seed", type=_index)
    text = "the log of a run's job, in all its lives"
    command = commands.add_parser("logs", help=text, description=text)
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or its name in runs/")
    command.add_argument("-f", "--follow", action="store_true", help="until the job has ended, requeues and all")
    command.add_argument("--rank", type=_index, metavar="N", help="what process N has printed, of those other than the main one")
    text = "stop a run at a checkpoint, a job or a process of this machine, and wait until it has left"
    command = commands.add_parser("cancel", help=text, description=text)
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of seeds, or its name in runs/")


def _add_runs(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """What can be done with runs that are there."""
    text = "classes and probabilities of images, by an export alone"
    command = commands.add_parser("predict", help=text, description=text)
    command.add_argument(
        "export", type=Path, metavar="EXPORT", help="the folder of an export, or of a run, or its name in runs/; or an .onnx file in it"
    )
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a file, or a folder of images and all folders below it")
    command.add_argument("--top", type=_count, default=1, metavar="K", help="the K most probable classes of each; 1 if not given")
    command.add_argument("--format", choices=("table", "jsonl", "csv"), default="table", help="table if not given")
    text = "an export on a page in the browser: draw, or drop a picture, and see the probabilities; until Ctrl-C"
    command = commands.add_parser("demo", help=text, description=text)
    command.add_argument("export", type=Path, metavar="EXPORT", help="the folder of an export, or of a run, or its name in runs/")
    _add_address(command, 7860)
    text = "send an export and its card to the Hugging Face Hub, or to W&B; nothing that is there already is sent again"
    command = commands.add_parser("publish", help=text, description=text)
    command.add_argument("export", type=Path, metavar="EXPORT", help="the folder of an export, or of a finished run, or its name in runs/")
    command.add_argument("target", metavar="TARGET", help="hub:owner/name or wandb:entity/project/name; a registry is a project")
    command.add_argument("--dry-run", action="store_true", help="print each file, its size and where it would go; nothing is sent or asked")
    text = "make the page of a run again, report/index.html"
    command = commands.add_parser("report", help=text, description=text)
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has been evaluated")
    text = "differences in configuration and results of finished runs, their curves, and paired tests against the first"
    command = commands.add_parser("compare", help=text, description=text)
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run, or of seeds, or its name in runs/; two or more"
    )
    command.add_argument("--out", type=Path, default=Path("comparison.png"), metavar="FILE.png", help="where the curves are drawn")
    text = "all runs of a folder: how they stand, what came of them"
    command = commands.add_parser("runs", help=text, description=text)
    command.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="of runs; runs, if not given")
    command.add_argument("--json", action="store_true", help="print all that is known, as JSON")
    text = "all runs of a folder in the browser, their curves over each other, live; until Ctrl-C"
    command = commands.add_parser("board", help=text, description=text)
    command.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="of runs; runs, if not given")
    _add_address(command, 8765)


def _add_address(command: argparse.ArgumentParser, port: int) -> None:
    command.add_argument("--port", type=_port, metavar="N", help=f"{port}, or the next that is free, if not given; 0: any")
    command.add_argument("--host", default="127.0.0.1", metavar="H", help="127.0.0.1, this machine alone, if not given; 0.0.0.0: anybody")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number up to 65535, or 0 for any that is free")
    return int(text)


def _add_resources(command: argparse.ArgumentParser) -> None:
    """What a job asks of SLURM, besides what the site file says (README)."""
    command.add_argument("--nodes", type=_count, default=1, metavar="N", help="1 if not given")
    tasks = command.add_mutually_exclusive_group()
    tasks.add_argument("--gpus-per-node", type=_count, metavar="G", help="and a process for each")
    tasks.add_argument("--tasks-per-node", type=_count, default=1, metavar="P", help="processes, where there are no GPUs; 1 if not given")
    command.add_argument(
        "--cpus-per-task", type=_count, metavar="C", help="cores for each process; 2 if neither this nor the site file says"
    )
    command.add_argument("--time", default="04:00:00", metavar="T", help="of one life; 04:00:00 if not given")
    command.add_argument("--partition", metavar="P")
    command.add_argument("--account", metavar="A")
    command.add_argument("--prepare-partition", metavar="P", help="prepare the data in a job before, on one node of this partition")
    command.add_argument("--array", default="", metavar="seeds=A-B", help="a task a seed, in the folder of `pipeline seeds`")
    command.add_argument("--after", nargs="+", action="extend", default=[], metavar="JOB", help="begin when these have ended well")
    command.add_argument("--dry-run", action="store_true", help="print the script; nothing is written or submitted")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def _stage(text: str) -> str:
    if text not in STAGES:
        raise argparse.ArgumentTypeError(f"no stage {text!r}{nearest(text, STAGES)}")
    return text
