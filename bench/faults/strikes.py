"""A signal at one exact moment of a run: when one of its processes makes a certain call of a certain function.

`python -m bench.faults.strikes WORDS` is `pipeline WORDS`, struck as the variable STRIKE says.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCHER = -1  # as a victim, beside the ranks
UPDATE = "pipeline.stages.train:update"
STRUCK = "struck"  # a file in the folder of the run: the time of the blow


@dataclass(frozen=True)
class Strike:
    """`signal` to `victim` at the `call`-th call of `at` by the process `by`; or, of no place, so many seconds after its start."""

    at: str = ""  # module:function, or module:Class.method
    call: int = 1
    after: bool = False  # the call, rather than before it
    seconds: float = 0
    by: int = 0  # a rank
    victim: int = 0  # a rank, or LAUNCHER
    signal: str = "SIGKILL"

    def __str__(self) -> str:
        victim = "the launcher" if self.victim == LAUNCHER else f"rank {self.victim}"
        when = f"{'after' if self.after else 'before'} call {self.call} of {self.at} by rank {self.by}"
        return f"{self.signal} to {victim} {when if self.at else f'after {self.seconds:.2f} s'}"


def expose(rank: int, strike: Strike | None) -> None:
    """Let this process of the run in the working directory be struck, and strike."""
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    if strike is None or strike.by != rank:
        return
    if not strike.at:
        timer = threading.Timer(strike.seconds, _blow, [strike])
        timer.daemon = True
        timer.start()
        return
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == strike.call:
            _blow(strike)

    wrap(strike.at, count, after=strike.after)


def wrap(place: str, told: Callable[[], None], *, after: bool = False) -> None:
    """Have `told` called at each call of the function at `place`."""
    module, _, name = place.partition(":")
    *inside, last = name.split(".")
    owner = functools.reduce(getattr, inside, importlib.import_module(module))
    function = getattr(owner, last)

    @functools.wraps(function)
    def wrapped(*args: Any, **named: Any) -> Any:
        if not after:
            told()
        result = function(*args, **named)
        if after:
            told()
        return result

    setattr(owner, last, wrapped)


def count(places: Iterable[str]) -> Counter[str]:
    """How often each of `places` is called from now on."""
    calls: Counter[str] = Counter()
    for place in places:
        wrap(place, functools.partial(calls.update, [place]))
    return calls


def _blow(strike: Strike) -> None:
    victim = os.getppid() if strike.victim == LAUNCHER else _pid(strike.victim)
    Path(STRUCK).write_text(str(time.time()))
    os.kill(victim, signal.Signals[strike.signal])
    if strike.victim == LAUNCHER:
        wrap(UPDATE, functools.partial(time.sleep, 0.3))  # so that no orphan is gone in time by having finished


def _pid(rank: int) -> int:
    """Of another process of the run, which may only just have started."""
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(Path(f"pid-{rank}").read_text())
        time.sleep(0.01)


def environment(strike: Strike | None) -> dict[str, str]:
    return {"STRIKE": json.dumps(dataclasses.asdict(strike))} if strike else {}


def main() -> int:
    strike = json.loads(os.environ.get("STRIKE", "null"))
    expose(int(os.environ.get("RANK", 0)), strike and Strike(**strike))
    from pipeline.main import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
