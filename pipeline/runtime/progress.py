"""How far something is, and the words for it."""

import time
from collections.abc import Callable, Mapping

FEW = 10  # units: each may take as long as all others


class Progress:
    """Counts `units` from `first` to `total` (None: nobody knows); `step` every time, `tell` at each interval.

    `line` is given each telling as a line; None if somebody draws what is here.
    """

    def __init__(
        self, what: str, *, first: int, total: int | None, units: str, epoch: float | None, line: Callable[[str], None] | None
    ) -> None:
        self.what, self.first, self.total, self.units = what, first, total, units
        self.epoch = epoch  # units of one
        self.count = first
        self.began = time.monotonic()
        self.values: Mapping[str, str] = {}
        self.also: Mapping[str, str] = {}
        self.closed = False
        self._line = line

    def step(self, count: int = 1) -> None:
        """Does no more than count: a step of a small net takes half a millisecond."""
        self.count += count

    def tell(self, values: Mapping[str, str]) -> None:
        self.values = values
        self._say({**({"epoch": self.epochs()} if self.epoch else {}), **values, "eta": clock(self.left())})

    def tell_also(self, values: Mapping[str, str]) -> None:
        """What comes more seldom: a line of its own, or beside the rest until it comes again."""
        self.also = values
        self._say(values)

    def doing(self, what: str) -> None:
        """What the time goes into now; worth no line."""
        self.also = {"now": what}

    def close(self) -> None:
        self.closed = True

    def epochs(self) -> str:
        """3.1/10."""
        assert self.epoch
        return f"{self.count / self.epoch:.1f}/{(self.total or 0) / self.epoch:.3g}"

    def left(self) -> float | None:
        """Seconds, at the pace so far; None if there is none to tell from."""
        done = self.count - self.first
        return (
            None
            if self.total is None or self.total < FEW or done <= 0
            else (self.total - self.count) * (time.monotonic() - self.began) / done
        )

    def _say(self, values: Mapping[str, str]) -> None:
        if self._line:
            self._line(f"{self.what} {self.count}/{self.total}  {'  '.join(f'{name} {value}' for name, value in values.items())}")


def clock(seconds: float | None) -> str:
    """0:00:07."""
    if seconds is None:
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
