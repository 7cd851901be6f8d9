"""Where a process begins: signals first, then the imports, which take a moment."""

import sys
from collections.abc import Sequence

from pipeline.arguments import parsed
from pipeline.runtime.signals import leave_at_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`; the exit code, as in `pipeline.errors`."""
    leave_at_signals()
    parsed(arguments)  # what ends here needs none of the imports
    from pipeline.main import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
