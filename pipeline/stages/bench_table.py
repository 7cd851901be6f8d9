"""What `bench` has found, for people: at most 80 columns."""

import statistics
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config import Config

WIDTH = 80
PHASES = {
    "batch": "gather, augment, normalise, or wait for it",
    "forward": "",
    "backward": "with the loss, and what DDP exchanges meanwhile",
    "exchange": "what is exchanged besides",
    "optimizer": "",
    "record": "log, checkpoints",
}


def table(config: Config, found: Mapping[str, Any]) -> str:
    return "\n".join([*_totals(config, found), "", *_phases(found["phases_seconds"]), "", *_tried(found["tried"]), "", *_advice(found)])


def _totals(config: Config, found: Mapping[str, Any]) -> Iterator[str]:
    step, waits = found["step_seconds"], found["waits_for_data_seconds"]
    peak, rate = found["peak_flops_per_second"], found["flops_per_second"]
    unit, factor = ("T", 1e12) if peak >= 1e12 else ("G", 1e9)
    share = f"{rate / factor:.3g} of {peak / factor:.3g} {unit}FLOP/s"
    precision = {"no": "float32", "fp64": "float64"}.get(config.train.precision, config.train.precision)
    of = "all processes together" if found["processes"] > 1 else "at most"
    yield f"bench: {config.train.model.name} on {config.data.source.name}, {found['how']}"
    yield f"images/s     {found['images_per_second']:>12,.0f}  {_ms(step)} ms for a batch of {found['batch_size']}"
    yield f"data         {_ms(waits):>9} ms  of that in wait for the batch, {waits / step:.0%}"
    yield f"utilisation  {found['utilisation']:>12.1%}  {share}, as a matrix product or"
    yield f"{'':27}convolution reaches here in {precision}"
    yield f"memory       {found['memory_bytes'] / 1e6:>9,.0f} MB  {of}"


def _phases(seconds: Mapping[str, float]) -> Iterator[str]:
    whole = max(sum(seconds.values()), 1e-9)
    yield "a step              ms  share"
    for phase, value in seconds.items():
        yield f"{phase:12}{_ms(value):>10}{value / whole:>7.0%}  {PHASES[phase]}".rstrip()


def _tried(tried: list[Mapping[str, Any]]) -> Iterator[str]:
    yield f"{'tried beside it, by turns':44}{'images/s':>12}  times as fast"
    for each in tried:
        if "refused" in each:
            yield textwrap.shorten(f"{each['words']}: {each['refused']}", WIDTH)
            continue
        times = each["times_as_fast"]
        spread = f"{_factor(statistics.median(times))} ({_factor(min(times))} to {_factor(max(times))})"
        yield f"{each['words']:44}{each['images_per_second']:>12,.0f}  {spread}"


def _advice(found: Mapping[str, Any]) -> Iterator[str]:
    for text in found["advice"] or ["keep it as it is: nothing that was tried is faster by a tenth"]:
        yield from textwrap.wrap(f"advice: {text}", WIDTH, subsequent_indent="        ", break_long_words=False)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
