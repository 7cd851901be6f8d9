"""What a campaign prints and keeps, and how it ends."""

import sys
from collections.abc import Sequence
from typing import Any

from bench.measure import Row, keep

__all__ = ["Row", "report"]


def report(name: str, rows: Sequence[Row], **facts: Any) -> int:
    """Print `rows` as a Markdown table and keep them as bench/results/faults_<name>.json.

    `failures` of a row are the cases that should have passed, each in a line; the exit code is 1 if there are any.
    """
    keep(f"faults.{name}", rows, **facts)
    for row in rows:
        for failure in row.get("failures", ()):
            print(f"failed: {failure}", file=sys.stderr)
    return int(any(row.get("failures") for row in rows))
