"""What a person sees while it runs: a bar on a terminal, a plain line an interval elsewhere."""

import datetime
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm


def say(text: str) -> None:
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has left; the run goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def write_to(log: Path) -> None:
    """Send all that this process prints, and what its libraries print, to the file `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


class Progress:
    """Counts `unit`s from `first` to `total`; `step` every time, `tell` at each interval."""

    def __init__(self, what: str, *, first: int, total: int, unit: str) -> None:
        self._what, self._first, self._total = what, first, total
        self._last: Mapping[str, str] = {}
        self._also: Mapping[str, str] = {}
        shape = "{desc} |{bar:8}| {n_fmt}/{total_fmt} eta {remaining}{postfix}"
        self._bar = tqdm(total=total, initial=first, unit=unit, desc=what, leave=False, disable=not sys.stderr.isatty(), bar_format=shape)

    def step(self, count: int = 1) -> None:
        self._bar.update(count)

    def tell(self, step: int, values: Mapping[str, str], seconds_left: float) -> None:
        self._last = values
        if self._bar.disable:
            self._line(step, {**values, "eta": str(datetime.timedelta(seconds=round(seconds_left)))})
        else:
            self._bar.set_postfix_str(self._text({**values, **self._also}), refresh=False)

    def tell_also(self, step: int, values: Mapping[str, str]) -> None:
        """What comes more seldom: a line of its own, or the end of the bar until it comes again."""
        self._also = values
        if self._bar.disable:
            self._line(step, values)
        else:
            self._bar.set_postfix_str(self._text({**self._last, **values}), refresh=False)

    def _line(self, step: int, values: Mapping[str, str]) -> None:
        say(f"{self._what} {step}/{self._total}  {self._text(values)}")

    @staticmethod
    def _text(values: Mapping[str, str]) -> str:
        return "  ".join(f"{name} {value}" for name, value in values.items())

    def close(self) -> None:
        self._bar.close()
