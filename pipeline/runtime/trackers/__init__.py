"""Services that mirror the record; a run goes on without them.

A tracker lives in a process aside (`aside`), from when training begins, or else the first thing there is to tell.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pipeline.runtime.trackers.tensorboard import tensorboard
from pipeline.runtime.trackers.wandb import wandb


class Tracker(Protocol):
    """What a service is told. A failure in here never reaches the training."""

    later: str  # what to do about what it could not send; "" if there is no such thing

    def has(self, step: int, name: str) -> bool:
        """Whether it was told so by an earlier life; `log` is for the rest."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def facts(self, values: Mapping[str, Any]) -> None:
        """How and by what the run is done."""
        ...

    def results(self, values: Mapping[str, float]) -> None:
        """What was measured of the whole run, when a gate is about to fail it as well."""
        ...

    def made(self, stage: str, place: str) -> None:
        """A stage is done, in this life or before: its artifact is `place`. Those it is made from were told first."""
        ...

    def close(self, exit_code: int) -> None: ...


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": wandb, "tensorboard": tensorboard}
