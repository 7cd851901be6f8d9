"""What a person sees: on a terminal how far it is, below whole lines, and nothing of it afterwards; elsewhere plain lines."""

import json
import os
import pty
import re
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY
from processes import begin, launch
from terminal import NOT_CI, Terminal, on

LONG = [*TINY, "train.epochs=4000"]
BAR = "━"


def run_on(terminal: Terminal, folder: Path, words: list[str], environment: Mapping[str, str] = NOT_CI, out: bool = True) -> int:
    (process,) = begin(folder, words, before=terminal.before(out=out), environment=environment)
    process.join(200)
    terminal.close()
    assert process.exitcode is not None
    return process.exitcode


def end(process: ForkServerProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)


@pytest.mark.parametrize("columns", [80, 50])
def test_a_terminal_shows_how_far_it_is_and_keeps_whole_lines_alone(tmp_path: Path, columns: int) -> None:
    terminal = Terminal(columns)
    (process,) = begin(tmp_path, ["train", *LONG], before=terminal.before(), environment=NOT_CI)
    until(lambda: b"validation 0." in terminal.written, 60, lambda: terminal.written.decode())
    end(process, signal.SIGTERM)
    terminal.close()
    before = [lines for lines in terminal.before_each_clearing() if lines and lines[-1].startswith(" validation")][-1]
    bar, values = before[-3:-1]
    assert "train: 1 process (single) on cpu" in "".join(before)
    assert bar.startswith(" train ")
    assert BAR * 8 in bar
    assert values.split()[0] == "loss"
    assert values.split()[2] == "accuracy"
    left = terminal.shown()
    assert not any(BAR in line for line in left)
    assert left[0] == "prepare: first time"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_that_is_stopped_leaves_a_terminal_as_it_was(tmp_path: Path, number: signal.Signals, code: int) -> None:
    terminal = Terminal()
    (process,) = begin(tmp_path, ["train", *LONG], before=terminal.before(), environment=NOT_CI)
    until(lambda: b"accuracy" in terminal.written, 60, lambda: terminal.written.decode())
    end(process, number)
    terminal.close()
    assert process.exitcode == code
    left = terminal.shown()  # also sees that the cursor is
    if number != signal.SIGKILL:
        assert left[-1].startswith("pipeline: stopped after step ") or left[-2].startswith("pipeline: stopped after step ")
        assert not any(BAR in line for line in left)


def test_an_error_leaves_no_half_bar(tmp_path: Path) -> None:
    terminal = Terminal()
    assert run_on(terminal, tmp_path, ["train", *TINY, "train.lr=1e9", "train.schedule=constant"]) == 4
    assert not any(BAR in line for line in terminal.shown())
    assert any(line.startswith("pipeline: ") for line in terminal.shown())


def test_a_terminal_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    keyboard, screen = pty.openpty()
    (process,) = begin(tmp_path, ["train", *LONG], before=partial(on, os.ttyname(screen), True), environment=NOT_CI)
    os.read(keyboard, 1)
    os.close(keyboard)
    os.close(screen)
    until(lambda: any(tmp_path.glob("artifacts/train/*/checkpoints/step-*")), 60, lambda: "no step was made")
    end(process, signal.SIGTERM)
    assert process.exitcode == 75


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    (process,) = begin(tmp_path, ["train", *TINY], before=into_a_full_disk)
    process.join(60)
    assert (tmp_path / "runs/tiny/train/weights.safetensors").is_file()


def into_a_full_disk(_: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.parametrize("plain", [{"CI": "true"}, {"TERM": "dumb"}])
def test_where_nobody_watches_there_are_plain_lines(tmp_path: Path, plain: Mapping[str, str]) -> None:
    terminal = Terminal()
    assert run_on(terminal, tmp_path, ["train", *TINY], {**NOT_CI, **plain}) == 0
    assert b"\x1b" not in terminal.written
    assert b"train 5/" in terminal.written


def test_a_line_of_json_stays_alone_on_stdout_while_stderr_moves(tmp_path: Path) -> None:
    terminal = Terminal()
    assert run_on(terminal, tmp_path, ["run", *TINY, "--json"], out=False) == 0
    said = (tmp_path / "output.txt").read_text()
    assert "\x1b" not in said
    assert json.loads(said.splitlines()[-1])["name"] == "tiny"
    assert BAR.encode() in terminal.written
    assert terminal.shown() == [""]


def test_colours_can_be_forced_into_a_pipe_where_nothing_moves(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["train", *TINY], environment={**NOT_CI, "FORCE_COLOR": "1"})
    assert ended.code == 0
    assert {found[-1] for found in re.findall(r"\x1b\[[0-9;]*[A-Za-z]", ended.output)} == {"m"}
    assert "\r" not in ended.output


def test_a_terminal_that_is_made_narrower_is_drawn_anew(tmp_path: Path) -> None:
    terminal = Terminal(120)
    (process,) = begin(tmp_path, ["train", *LONG], before=terminal.before(), environment=NOT_CI)
    until(lambda: b"accuracy" in terminal.written, 60, lambda: terminal.written.decode())
    terminal.resize(50)
    at = len(terminal.written)
    until(lambda: terminal.written.count(b"\x1b[J", at) > 5, 60, lambda: terminal.written.decode())
    end(process, signal.SIGTERM)
    terminal.close()
    (shown,) = [lines for lines in terminal.before_each_clearing() if lines and any(line.startswith(" train ") for line in lines)][-1:]
    drawn = shown[[line.startswith(" train ") for line in shown].index(True) :]
    assert len(drawn) in (2, 3)
    assert all(len(line) < 50 for line in drawn)


def test_a_terminal_without_unicode_gets_none(tmp_path: Path) -> None:
    terminal = Terminal()
    (process,) = begin(tmp_path, ["train", *LONG], before=partial(in_ascii, terminal.before()), environment=NOT_CI)
    until(lambda: b"accuracy" in terminal.written, 60, lambda: terminal.written.decode())
    end(process, signal.SIGTERM)
    terminal.close()
    assert terminal.written.isascii()
    assert b"..." in terminal.written


def in_ascii(before: Callable[[int], None], rank: int) -> None:
    before(rank)
    sys.stdout = os.fdopen(1, "w", encoding="ascii", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="ascii", closefd=False)


def test_no_color_moves_without_colours(tmp_path: Path) -> None:
    terminal = Terminal()
    assert run_on(terminal, tmp_path, ["train", *TINY], {**NOT_CI, "NO_COLOR": "1"}) == 0
    assert b" train " in terminal.written
    assert not re.search(rb"\x1b\[[0-9;]*m", terminal.written)
