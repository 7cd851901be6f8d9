"""Fault campaigns: what is promised, broken on purpose, a thousand times. One command each: `python -m bench.faults.<name>`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # `processes`: runs forked from a process that has torch imported
