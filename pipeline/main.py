"""The command line."""

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__, errors
from pipeline.config import Config, dump, load
from pipeline.errors import PipelineError
from pipeline.plan import TARGETS, Plan, check, check_size, status
from pipeline.runtime import console
from pipeline.runtime.console import say
from pipeline.runtime.folder import RunFolder
from pipeline.runtime.launch import Launch, StopFlag, prepare_process, read_launch
from pipeline.runtime.runner import Runner
from pipeline.runtime.trackers import Trackers
from pipeline.summary import closing_words, summarise

if TYPE_CHECKING:
    from pipeline.runtime.world import World

STATES = {0: "done", 75: "stopped", 130: "stopped", 143: "stopped"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; the exit code, as in `pipeline.errors`."""
    options = _parsed(arguments)
    try:
        if options.command == "predict":
            return _predict(options.run, options.images)
        config = check(_configuration(options))
        if options.command == "config":
            print(dump(config), end="")
            return 0
        if options.command == "status":
            return _status(config)
        return _run(config, options)
    except PipelineError as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return error.exit_code


def _run(config: Config, options: argparse.Namespace) -> int:
    """Make or find everything up to the stage asked for, and leave word in the run folder of how it ended."""
    launch = read_launch(config.run)
    check_size(config, launch.size)
    stop = StopFlag()
    threads = prepare_process(config.run, launch)
    terminal = os.dup(2)
    folder, code, message = None, 0, ""
    try:
        if launch.is_main:
            stop.listen()
            folder = RunFolder(config)
        else:
            console.write_to(config.run.folder / config.run.name / "logs" / f"rank-{launch.rank}.log")
        _make(config, options, launch, stop, threads, folder)
    except PipelineError as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the same command goes on from the last checkpoint"
    except OSError as error:  # the disk, the network: the user's to mend
        code, message = 1, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error}"
        traceback.print_exc()
    stop.ignore()
    if folder is not None:
        with contextlib.suppress(OSError):  # a full disk has been told of
            folder.status(STATES.get(code, "failed"), exit_code=code, message=message)
    if message and (launch.is_main or code == 1):
        who = "" if launch.is_main else f"rank {launch.rank}: "
        os.write(terminal, f"pipeline: {who}{message}\n".encode())
    return code


def _make(config: Config, options: argparse.Namespace, launch: Launch, stop: StopFlag, threads: int, folder: RunFolder | None) -> None:
    until = "export" if options.command == "run" else options.command
    trackers = Trackers(config, config.run.folder / config.run.name)
    with contextlib.ExitStack() as last:  # the other processes are left last: a launcher ends those that stay

        def open_world() -> "World":
            from pipeline.runtime.world import World

            world = World(config.run, launch, stop, precision=config.train.precision, threads=threads)
            stop.listen()
            return last.enter_context(world)

        def on_stage(name: str, place: Path, done: bool) -> None:
            if name == "train":
                trackers.training = place
            if folder is not None:
                folder.link(name, place, done)

        runner = Runner(config, launch, stop, trackers, open_world, options.force, on_stage)
        plan = Plan(config, runner)
        try:
            getattr(plan, TARGETS[until])
        except BaseException as error:
            trackers.close(getattr(error, "exit_code", 1))
            raise
        trackers.close(0)
        if folder is None:
            return
        typed = [sys.argv[0], *options.words, *(["--data-dir", str(options.data_dir)] if options.data_dir else [])]
        say(closing_words(config, until, folder.path, typed))
        if until == "export":
            summary = summarise(plan, runner.manifests, folder.path)
            folder.summary(summary)
            if options.json:
                say(json.dumps(summary))


def _status(config: Config) -> int:
    waiting = ""
    for name, found in status(config).items():
        if found is None:
            print(f"{name:9} waits     for {waiting}")
        elif found.manifest is None:
            print(f"{name:9} not fresh {found.why}")
            waiting = waiting or name
        else:
            print(f"{name:9} {found.why:9} {found.place}")
    return 0


def _predict(run: Path, images: Sequence[Path]) -> int:
    from pipeline.stages.predict import predict

    for path, name, probability in predict(run, images):
        print(f"{path}: {name} {probability:.4f}")
    return 0


def _configuration(options: argparse.Namespace) -> Config:
    words: list[str] = options.words
    path = Path(words[0]) if words and "=" not in words[0] else None
    config = load(path, words[1 if path else 0 :])
    if options.data_dir is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"root": options.data_dir})})


COMMANDS = {
    "run": "make everything: prepare, train, evaluate, export",
    "prepare": "raw images to splits in shards",
    "train": "until trained weights",
    "evaluate": "until the report on the test split",
    "export": "until the exported model (the same as run)",
    "status": "which stages are fresh, which are not, and why",
    "config": "print the resolved configuration",
}


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may come before and after flags, which argparse does not know of subcommands."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if strange := [word for word in more if word.startswith("-") or not hasattr(options, "words")]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if more:
        options.words += more
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline",
        description="Train image classifiers: prepare, train, evaluate, export. The same command again goes on, or finds all fresh.",
        epilog=f"exit codes:\n{(errors.__doc__ or '').partition('exit code.')[2].rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("words", nargs="*", metavar="CONFIG.yaml | section.key=value", help="a file first, then overrides")
        command.add_argument("--data-dir", type=Path, metavar="DIR", help="the same as data.root=DIR")
        if name in TARGETS or name == "run":
            command.add_argument("--force", choices=tuple(TARGETS), default="", help="make this stage again, fresh or not")
            command.add_argument("--json", action="store_true", help="print summary.json as the last line")
    command = commands.add_parser("predict", help="class and probability of images")
    command.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run, or of its export")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
