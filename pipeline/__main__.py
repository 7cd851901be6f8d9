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
    leave_at_signals()
    parsed(arguments)  # what ends here needs none of the imports
    from pipeline.main import main

    code = main(arguments)
    return code if os.environ.get("WORLD_SIZE", "1") == "1" else _leave(code)


def _leave(code: int) -> NoReturn:
    """End this process without Python's own last steps, in which one that has done its work may be aborted by a thread of torch's."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
