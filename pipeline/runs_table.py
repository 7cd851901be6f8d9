"""All runs as a table, for a person in front of a terminal or for other programs."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pipeline.runs import Run, read
from pipeline.runtime.console import coloured, moves, say

COLOURS = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red", "lost": "magenta"}
WIDE = 1000  # columns, where nobody looks at the edge of a screen
ENOUGH = 20  # columns of a message that is cut, at least


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


COLUMNS: dict[str, Callable[[Run], str]] = {  # in the order in which they are shown
    "run": lambda run: f"  {run.path.name}" if run.group else run.name,
    "state": lambda run: run.state,
    "step": lambda run: f"{run.step} of {run.steps}" if run.steps and run.step not in (None, run.steps) else _number(run.step, "d"),
    "test": lambda run: _number(run.test_accuracy, ".4f"),
    "validation": lambda run: _number(run.best, ".4f") + (f" {run.metric}" if run.best is not None and run.metric != "accuracy" else ""),
    "last": lambda run: _number(run.last, ".4f"),
    "seconds": lambda run: _number(run.seconds, ",.1f"),
    "images/s": lambda run: _number(run.images_per_second, ",.0f"),
    "when": lambda run: run.when[:16].replace("T", " "),
    "model": lambda run: run.model,
    "data": lambda run: run.data,
    "lr": lambda run: _number(run.lr, "g"),
    "optimizer": lambda run: run.optimizer,
    "on": lambda run: f"{run.world_size} x {run.device}" if (run.world_size or 1) > 1 else run.device,
    "exit": lambda run: _number(run.exit_code, "d"),
    "message": lambda run: run.message,
}
LEFT = {"run", "state", "when", "model", "data", "optimizer", "on", "message"}
# What goes first where a terminal is narrow.
DISPENSABLE = (
    "exit",
    "on",
    "optimizer",
    "data",
    "last",
    "images/s",
    "lr",
    "model",
    "seconds",
    "when",
    "message",
    "validation",
    "step",
    "test",
)


def show(folder: Path, *, as_json: bool) -> None:
    """Print the runs in `folder`.

    Raises:
        ConfigError: there is no such folder.
    """
    runs = read(folder)
    if as_json:
        say(json.dumps({"runs": [run.facts() for run in runs.found], "left_out": list(runs.left_out)}))
        return
    console = Console(highlight=False, force_terminal=coloured(sys.stdout))
    lines = list(table(runs.found, console.width if moves(sys.stdout) else WIDE))
    lines += [] if runs.found else [Text(f"{folder}: no runs yet; `pipeline run` makes the first")]
    lines += [Text(_plain(line)) for line in runs.left_out]
    if console.is_terminal:
        console.print(*lines, sep="\n", soft_wrap=True)
    else:
        say("\n".join(line.plain for line in lines))


def table(runs: Sequence[Run], width: int) -> Iterator[Text]:
    """A line for each run, of as many columns as `width` has room for; seeds and trials below the name of what they share."""
    rows = _rows(runs)
    widths = _fitting(rows, width)
    for k, row in enumerate([{name: name for name in COLUMNS}, *rows] if rows else []):
        line = Text(style="bold" if k == 0 else "")
        for name, wide in widths.items():
            missing = wide - cell_len(row[name])
            text = set_cell_size(row[name], wide) if missing < 0 else row[name]
            cell = text + " " * missing if name in LEFT else " " * missing + text
            line.append(cell + "  ", COLOURS.get(row["state"], "") if name == "state" else "")
        line.rstrip()
        yield line


def _rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    rows, group = [], ""
    for run in runs:
        if run.group and run.group != group:
            rows.append(dict.fromkeys(COLUMNS, "") | {"run": f"{run.group}/"})
        group = run.group
        rows.append({name: _plain(text(run)) for name, text in COLUMNS.items()})
    return rows


def _plain(text: str) -> str:
    """Without what would move the cursor: a folder may have any name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _fitting(rows: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """The columns that have anything to show, and how wide they are, less those for which there is no room."""
    wide = {
        name: max(cell_len(text) for text in (name, *(row[name] for row in rows))) for name in COLUMNS if any(row[name] for row in rows)
    }

    def room() -> int:
        return width - sum(wide.values()) - 2 * (len(wide) - 1)

    message = wide.get("message", 0)
    if message:  # the one that can be cut
        wide["message"] = min(message, ENOUGH)
    for name in DISPENSABLE:
        if room() < 0:
            wide.pop(name, None)
    if "message" in wide:
        wide["message"] = min(message, wide["message"] + room())
    if wide and room() < 0:
        wide["run"] = max(len("run"), wide["run"] + room())
    return wide
