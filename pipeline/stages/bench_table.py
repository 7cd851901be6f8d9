"""What `bench` has found, for people: at most 80 columns."""

import statistics
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config import Config

WIDTH = 80
PHASES = {
    "batch": "gather, augment, normalise, or wait for it",
    "step": "its rate, its seed",
    "forward": "with the loss",
    "backward": "with sums for the log, and what DDP exchanges",
    "exchange": "what processes exchange besides",
    "optimizer": "",
    "record": "log, checkpoints",
}


def table(config: Config, found: Mapping[str, Any]) -> str:
    return "\n".join([*_totals(config, found), "", *_phases(found), "", *_tried(found["tried"]), "", *_advice(found)])


def _totals(config: Config, found: Mapping[str, Any]) -> Iterator[str]:
    peak, rate = found["peak_flops_per_second"], found["flops_per_second"]
    unit, factor = ("T", 1e12) if peak >= 1e12 else ("G", 1e9)
    share = f"{rate / factor:.3g} of {peak / factor:.3g} {unit}FLOP/s"
    precision = {"no": "float32", "fp64": "float64"}.get(config.train.precision, config.train.precision)
    of = "all processes together" if found["processes"] > 1 else "at most"
    yield f"bench: {config.train.model.name} on {config.data.source.name}, {found['how']}"
    for note in found["notes"]:
        yield from textwrap.wrap(note, WIDTH, subsequent_indent="       ")
    step = f"{_ms(found['step_seconds'])} ms for a batch of {found['batch_size']}"
    yield f"images/s     {found['images_per_second']:>12,.0f}  {step}, without validation"
    yield f"data         {_ms(found['data_seconds']):>9} ms  until a batch is there, {found['data_share']:.0%} of a step"
    yield f"utilisation  {found['utilisation']:>12.1%}  {share}, as a matrix product or"
    yield f"{'':27}convolution reaches here in {precision}"
    yield f"memory       {found['memory_bytes'] / 1e6:>9,.0f} MB  {of}"


def _phases(found: Mapping[str, Any]) -> Iterator[str]:
    seconds = found["phases_seconds"]
    whole = max(sum(seconds.values()), 1e-9)
    if found["recorded"]:
        yield "Launched as one, a step has no parts. These are of steps launched piece by"
        yield "piece, which take longer:"
    yield "part                ms  share"
    for phase, value in {**seconds, "together": whole}.items():
        yield f"{phase:12}{_ms(value):>10}{value / whole:>7.0%}  {PHASES.get(phase, '')}".rstrip()


def _tried(tried: list[Mapping[str, Any]]) -> Iterator[str]:
    yield f"{'tried one by one, by turns with yours':43}{'images/s':>8}{'yours':>8}  times as fast"
    for each in tried:
        if "refused" in each:
            yield textwrap.shorten(f"{each['words']}: {each['refused']}", WIDTH)
            continue
        times = each["times_as_fast"]
        spread = f"{_factor(statistics.median(times))} ({_factor(min(times))} to {_factor(max(times))})"
        yield f"{each['words']:43}{_short(each['images_per_second']):>8}{_short(each['beside_images_per_second']):>8}  {spread}"


def _advice(found: Mapping[str, Any]) -> Iterator[str]:
    for text in found["advice"] or ["keep it as it is: nothing tried is faster by a tenth, and in all windows but one"]:
        yield from textwrap.wrap(f"advice: {text}", WIDTH, subsequent_indent="        ", break_long_words=False)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _short(count: float) -> str:
    """Three digits, in thousands or millions."""
    factor, unit = next(((factor, unit) for factor, unit in ((1e6, "M"), (1e3, "k")) if count >= factor), (1, ""))
    return f"{count / factor:.3g}{unit}"


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
