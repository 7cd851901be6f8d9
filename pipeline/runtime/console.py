"""What a person sees while it runs: a bar on a terminal, a plain line an interval elsewhere."""

import datetime
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm


def say(text: str) -> None:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


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
        self._bar = tqdm(total=total, initial=first, unit=unit, desc=what, leave=False, disable=not sys.stderr.isatty())

    def step(self, count: int = 1) -> None:
        self._bar.update(count)

    def tell(self, step: int, values: Mapping[str, str], seconds_left: float) -> None:
        text = "  ".join(f"{name} {value}" for name, value in values.items())
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
        else:
            left = datetime.timedelta(seconds=round(seconds_left))
            say(f"{self._what} {step}/{self._total}  {text}  eta {left}")

    def tell_also(self, step: int, values: Mapping[str, str]) -> None:
        """A line of its own, on a terminal too."""
        say(f"{self._what} {step}/{self._total}  {'  '.join(f'{name} {value}' for name, value in values.items())}")

    def close(self) -> None:
        self._bar.close()
