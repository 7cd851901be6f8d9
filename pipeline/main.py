"""The command line."""

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from pipeline.arguments import parsed
from pipeline.config import Config, dump, typed
from pipeline.credentials import hide
from pipeline.errors import ConfigError, Lost, PipelineError
from pipeline.plan import check, check_places, check_size, fetched, prepared
from pipeline.process import Process, make, measure, outcome, told
from pipeline.runtime.console import say, say_plainly
from pipeline.runtime.launch import StopFlag, as_trial, check_strategy, prepare_process, read_launch, speaks
from pipeline.runtime.signals import leave_at_signals
from pipeline.seeds import of_seed, run_seeds
from pipeline.summary import closing_words

QUIET = {  # of what libraries would tell their makers, unless the user wants them to
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime from 1.31 on
    "WANDB_ERROR_REPORTING": "false",
}
AFTER_THE_WORD = 1.0  # seconds that the others let the one that speaks leave first: torchrun ends all when any has left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; the exit code, as in `pipeline.errors`."""
    options = parsed(arguments)
    os.environ |= QUIET | os.environ
    try:
        return _answer(options)
    except (PipelineError, OSError, KeyboardInterrupt) as error:
        code, message = outcome(error)
        if speaks():
            print(f"pipeline: {message}", file=sys.stderr)
        else:
            if options.command == "doctor":  # of mistakes that are not the same on each
                print(f"pipeline: rank {os.environ.get('RANK') or os.environ.get('SLURM_PROCID')}: {message}", file=sys.stderr)
            time.sleep(AFTER_THE_WORD)
        return code


def _answer(options: argparse.Namespace) -> int:
    if options.command == "predict":
        return _predict(options)
    if options.command == "publish":
        return _publish(_folder(options.export), options.target, dry_run=options.dry_run)
    if options.command == "report":
        return _report(_folder(options.run))
    if options.command == "compare":
        return _compare([*map(_called, options.runs)], options.out)
    if options.command == "sweep":
        return _sweep(options)
    if options.command == "runs":
        return _runs(options.folder, options.json)
    if options.command == "board":
        return _board(options.folder, options.host, options.port)
    if options.command == "demo":
        return _demo(options.export, options.host, options.port)
    if options.command in ("logs", "cancel"):
        return _attend(_folder(options.run), options)
    if options.command == "status":
        options.words = _of_run(options.words)
    config = check(typed(options.words, options.data_dir))
    config = config if options.seed is None else of_seed(config, options.seed)
    config = config.model_copy(update={"run": as_trial(config.run)})
    if options.command == "again":
        return _again(config)
    if options.command == "config":
        print(dump(config), end="")
        return 0
    if options.command == "doctor":
        return _doctor(config, options.json)
    check_places(config)
    config = fetched(config)
    if options.command == "scale":
        return _scale(config, options)
    if options.command == "status":
        return _status(config, _as_typed(options))
    if options.command == "submit":
        return _submit(config, options)
    return _run(config, options)


def _run(config: Config, options: argparse.Namespace) -> int:
    """Do what was asked for, as one of the processes launched for it; the exit code."""
    launch = read_launch(config.run)
    check_size(config, launch.size)
    if options.command not in ("prepare", "model"):  # which take no steps
        check_strategy(config.run.strategy, launch.size)
    stop = StopFlag(config.run.time_limit)
    process = Process(launch, stop, prepare_process(config.run, launch), terminal=os.dup(2), last=contextlib.ExitStack())
    stop.waits = not launch.is_main
    stop.last_words = process.last_words if launch.is_main else stop.last_words
    stop.listen()
    code, message, shared = 0, "", False
    try:
        with process.last:
            code = run_seeds(config, options.count, process) if options.command == "seeds" else _one(config, options, process)
    except (Exception, KeyboardInterrupt) as found:
        error = told(found, stop)
        code, message = outcome(error)
        shared = isinstance(error, PipelineError) and not isinstance(error, Lost)  # the main process tells of it
        if not isinstance(error, PipelineError | OSError | KeyboardInterrupt):
            print(hide(traceback.format_exc()), end="", file=sys.stderr)
    stop.ignore()
    if message and (launch.is_main or (code == 1 and not shared)):
        who = "" if launch.is_main else f"rank {launch.rank}: "
        process.say(f"{who}{message}")
    return code


def _one(config: Config, options: argparse.Namespace, process: Process) -> int:
    if options.command == "bench":
        return _bench(config, options, process)
    until = {"run": "export"}.get(options.command, options.command)
    if options.command in ("model", "lr-find"):  # which leave a run of the same name alone
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": f"{config.run.name}-{options.command}"})})
    summary = make(config, until, options.force or "", process)
    if until == "model":
        leave_at_signals()
        say(_described(config))
        return 0
    if process.launch.is_main:
        say(closing_words(config, until, config.run.folder / config.run.name, _as_typed(options), summary or {}, process.made))
        if summary is not None and options.json:
            say_plainly(json.dumps(summary))
    return 0


def _bench(config: Config, options: argparse.Namespace, process: Process) -> int:
    config = config.model_copy(update={"run": config.run.model_copy(update={"trackers": ()})})
    found = measure(config, process, "bench")
    from pipeline.stages.bench_table import table

    if process.launch.is_main:
        say(table(config, found))
        if options.json:
            say_plainly(json.dumps(found))
    return 0


def _described(config: Config) -> str:
    from pipeline.learning.layers import describe
    from pipeline.learning.models import build
    from pipeline.learning.start import freeze

    data = prepared(config)
    model = build(config.train.model, data.shape, len(data.classes))
    freeze(model, config.train.freeze)
    return describe(model, data.shape)


def _doctor(config: Config, as_json: bool) -> int:
    from pipeline.doctor import doctor

    return doctor(config, as_json=as_json)


def _scale(config: Config, options: argparse.Namespace) -> int:
    from pipeline.scale import scale

    return scale(config, _words(options), picture=options.out, up_to=options.up_to, as_json=options.json)


def _as_typed(options: argparse.Namespace) -> list[str]:
    """The program, and what was typed of the run."""
    words = [*options.words, *(["--data-dir", str(options.data_dir)] if options.data_dir else [])]
    return [sys.argv[0], *words, *([] if options.seed is None else ["--seed", str(options.seed)])]


def _of_run(words: Sequence[str]) -> list[str]:
    """`words`, of which the first may call a run by its folder, or its name, instead of its configuration."""
    if words and "=" not in words[0] and not Path(words[0]).is_file():
        for place in (Path(words[0]), Path("runs") / words[0]):
            if (place / "config.yaml").is_file():
                return [str(place / "config.yaml"), *words[1:]]
    return [*words]


def _status(config: Config, typed: Sequence[str]) -> int:
    from pipeline.standing import standing

    for line in standing(config, typed):
        say(line)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from pipeline.sweep import sweep

    return sweep(options.file, _words(options), count=options.count, seed=options.seed)


def _words(options: argparse.Namespace) -> list[str]:
    """The configuration as it was typed, in words alone."""
    return [*options.words, *([f"data.root={options.data_dir}"] if options.data_dir else [])]


def _predict(options: argparse.Namespace) -> int:
    from pipeline.predict import predict

    return predict(options.export, options.images, form=options.format, top=options.top)


def _demo(export: Path, host: str, port: int | None) -> int:
    from pipeline.demo import demo

    demo(export, host, port)
    return 0


def _publish(export: Path, target: str, *, dry_run: bool) -> int:
    from pipeline.publish import publish

    publish(export, target, dry_run=dry_run)
    return 0


def _report(run: Path) -> int:
    from pipeline.report import remake

    remake(run)
    say(f"  report   {run / 'report' / 'index.html'}")
    return 0


def _compare(runs: Sequence[Path], picture: Path) -> int:
    from pipeline.compare import compare

    for part in compare(runs, picture):
        say(part)
    return 0


def _runs(folder: Path, as_json: bool) -> int:
    from pipeline.runs_table import show

    show(folder, as_json=as_json)
    return 0


def _board(folder: Path, host: str, port: int | None) -> int:
    from pipeline.board.server import serve

    serve(folder, host, port)
    return 0


def _submit(config: Config, options: argparse.Namespace) -> int:
    from pipeline.slurm.submit import submit

    submit(config, options)
    return 0


def _attend(folder: Path, options: argparse.Namespace) -> int:
    from pipeline.slurm.cancel import cancel
    from pipeline.slurm.logs import logs

    if options.command == "cancel":
        cancel(folder)
    else:
        logs(folder, rank=options.rank, follow=options.follow)
    return 0


def _again(config: Config) -> int:
    from pipeline.slurm.again import why_not

    if why := why_not(config.run.folder / config.run.name):
        say(f"not requeued: {why}")
    return 1 if why else 0


def _folder(run: Path) -> Path:
    """The folder of a run that was called by it, or by its name."""
    if (found := _called(run)).is_dir():
        return found
    raise ConfigError(f"{run} is no folder of a run, nor runs/{run}")


def _called(run: Path) -> Path:
    return next((place for place in (run, Path("runs") / run) if place.is_dir()), run)


if __name__ == "__main__":
    sys.exit(main())
