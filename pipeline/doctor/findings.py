"""What the doctor finds, line by line; and how to look at what may never answer."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import PipelineError, of_the_machine

T = TypeVar("T")
THREAD = "doctor"
SHOWN = 4  # ranks of those that have the same trouble


@dataclass(frozen=True)
class Finding:
    what: str
    value: str = ""
    wrong: str = ""  # empty if all is well
    cure: str = ""
    who: str = ""  # the ranks that it is about, if not all

    @property
    def line(self) -> str:
        found = ": ".join(filter(None, [self.who, self.value, self.wrong]))
        return f"{'WRONG' if self.wrong else 'ok':7}{self.what:15}{found}{f'; {self.cure}' if self.cure else ''}"


class Clock:
    """So many seconds for all that is looked at together."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, most: float) -> float:
        return max(0.1, min(most, self._end - time.monotonic()))


def begin(look: Callable[[], T]) -> "Future[T]":
    """Look in a thread, which is left behind if it never ends."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(look())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name=THREAD, daemon=True).start()
    return answer


def is_hung() -> bool:
    """Whether a thread was left behind, so that this process cannot end as others do."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def given(what: str, answer: "Future[T]", seconds: float, otherwise: T, cure: str = "") -> tuple[T, list[Finding]]:
    """The answer, if it comes within so many seconds and is none of trouble; else `otherwise`, and what was wrong."""
    try:
        return answer.result(seconds), []
    except TimeoutError as error:
        said = of_the_machine(error) if answer.done() else f"no answer within {seconds:.0f} s"
    except PipelineError as error:
        said, _, cures = str(error).partition("; ")
        cure = cures or cure
    except OSError as error:
        said = of_the_machine(error)
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return otherwise, [Finding(what, wrong=said, cure=cure)]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """What is wrong comes last, once for all processes that say the same; and nothing is well of what is wrong elsewhere."""
    found = [*findings]
    wrong: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in found:
        if finding.wrong:
            wrong.setdefault((finding.what, finding.value, finding.wrong, finding.cure), []).append(finding)
    troubled = {key[0] for key in wrong}
    well = [finding for finding in found if finding.what not in troubled]
    return [*well, *(Finding(*key, _together(same)) for key, same in wrong.items())]


def _together(same: list[Finding]) -> str:
    names = [finding.who for finding in same if finding.who]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    found = [*findings]
    yield from (finding.line for finding in found)
    wrong = ", ".join(dict.fromkeys(finding.what for finding in found if finding.wrong))
    yield f"doctor: wrong: {wrong}" if wrong else "doctor: all is well"
