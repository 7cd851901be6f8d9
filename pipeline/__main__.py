"""Where a process begins: signals first, then the imports, which take a moment."""

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.arguments import parsed
from pipeline.runtime.signals import leave_at_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; the exit code, as in `pipeline.errors`."""
    _have_streams()
    leave_at_signals()
    parsed(arguments)  # what ends here needs none of the imports
    from pipeline.main import main

    code = main(arguments)
    return code if os.environ.get("WORLD_SIZE", "1") == "1" else _leave(code)


def _have_streams() -> None:
    """Where a stream was closed by who started this process: the next file that is opened would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _leave(code: int) -> NoReturn:
    """End this process without Python's own last steps, in which one that has done its work may be aborted by a thread of torch's."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
