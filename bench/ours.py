"""The command line, as it is, with an eye on its steps: python -m bench.ours DESCRIPTOR STEPS WORDS...

The training loop belongs to a `turns.Window` of STEPS; with 0 the time of the second step is told on DESCRIPTOR, and then this ends.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.turns import Window
from pipeline.__main__ import main
from pipeline.runtime.manifests import Stage


def watch_steps(after: Callable[[], None]) -> None:
    """Call `after` with each step of the training, once its module has been imported, when the stage begins."""
    imported = Stage.function

    def function(stage: Stage[Any]) -> Callable[..., Any]:
        found = imported(stage)
        if stage.name == "train":
            from pipeline.stages.record import Record

            counted = Record.step

            def step(record: Record, *words: Any) -> None:
                counted(record, *words)
                after()

            Record.step = step  # type: ignore[assignment, method-assign]
        return found

    Stage.function = function  # type: ignore[assignment, method-assign]


def second_step(descriptor: int) -> Callable[[], None]:
    seen = 0

    def after() -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            os.write(descriptor, f"{time.monotonic()}\n".encode())
            os._exit(0)

    return after


if __name__ == "__main__":
    descriptor, steps = int(sys.argv[1]), int(sys.argv[2])
    sys.argv[1:3] = []
    watch_steps(Window(descriptor, steps).step if steps else second_step(descriptor))
    sys.exit(main(sys.argv[1:]))
