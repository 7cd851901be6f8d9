"""What bench/results/scaling.json says, as tables in docs/scaling.md and curves; anew without measuring: python -m bench.scaling_page"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import scaling_model as model
from bench.measure import RESULTS
from pipeline.stages.report.theme import STYLE

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- {}: by python -m bench.scaling -->", "<!-- to here -->"
Kept = Mapping[str, Any]


def write(kept: Kept) -> None:
    """Put each table between its two marks, and draw."""
    page = DOCS / "scaling.md"
    page.write_text(filled(page.read_text(), kept))
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        curves(kept).savefig(DOCS / "scaling.svg", metadata={"Date": None, "Creator": None})


def filled(text: str, kept: Kept) -> str:
    for name, table in tables(kept).items():
        mark = BEGIN.format(name)
        head, found, rest = text.partition(mark)
        assert found, f"docs/scaling.md has no {mark}"
        text = f"{head}{mark}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
    return text


def tables(kept: Kept) -> dict[str, str]:
    return {
        "measured": "\n".join(_measured(kept)),
        "parameters": "\n".join(_parameters(kept)),
        "stated": "\n".join(_stated()),
        "nets": "\n".join(_nets(kept)),
        "foretold": "\n".join(_foretold(kept)),
        "parts": "\n".join(_parts(kept)),
        "advised": "\n".join(_advised(kept)),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * left + " ---: |" * (len(head) - left)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _measured(kept: Kept) -> Iterator[str]:
    machine, errors = kept["machine"], kept["errors"]
    on = f"{machine['cores']} cores of {machine['cpu']}, torch {machine['torch']}, load {machine['load']} before it"
    yield f"Measured: medians of n = {kept['n']} rounds by turns, on {on}; one thread a process. `predicted` is by the parameters that"
    yield "were fitted to 1 and 2 processes alone, so that 4 are held out."
    yield ""
    ones = {(row["net"], row["images"]): row["seconds"] for row in kept["measured"] if row["processes"] == 1}
    rows = []
    for row in kept["measured"]:
        weak = ones[row["net"], row["images"]] / row["seconds"]
        off = row["predicted"] / row["seconds"] - 1
        what = [row["net"], row["exchange"] if row["processes"] > 1 else "", str(row["images"]), str(row["processes"])]
        found = [_short(row["seconds"] * 1e3), row["spread"], f"{weak:.2f}", _short(row["predicted"] * 1e3), f"{off:+.0%}"]
        rows.append([*what, *found])
    head = ["net", "exchange", "images a process", "processes", "step, ms", "spread", "efficiency", "predicted, ms", "off by"]
    yield from _table(head, rows, left=2)
    yield ""
    yield f"Median error on 1 and 2 processes, to which it was fitted: {errors['fitted']:.0%}. On 4, held out: {errors['held out']:.0%},"
    yield f"at most {errors['held out, most']:.0%}. Fitted to all: {errors['all']:.0%}."


def _parameters(kept: Kept) -> Iterator[str]:
    units = {"slowing": (100, "%"), "meeting": (1e6, "µs"), "memory rate": (1e9, "ns a byte")}
    units |= {"message": (1e6, "µs"), "gloo rate": (1e9, "ns a byte"), "overlap": (100, "%")}
    rows = []
    for name, value in kept["parameters"].items():
        factor, unit = units.get(name, (1e6, "µs"))
        rows.append([name, f"{kept['parameters, of 1 and 2'][name] * factor:.3g}", f"{value * factor:.3g}", unit])
    yield from _table(["parameter", "fitted to 1 and 2", "fitted to all", "unit"], rows)


def _stated() -> Iterator[str]:
    rows = [
        ["FLOP/s of an H100 SXM, bfloat16, dense", f"{model.PEAK / 1e12:,.0f} T"],
        ["share of them that is used", f"{model.UTILISED:.0%}"],
        ["the host's time for a kernel; kernels a layer", f"{model.LAUNCH * 1e6:.0f} µs; {model.KERNELS}"],
        ["GPUs a node; NVLink, each way and GPU", f"{model.NODE}; {model.NVLINK / 1e9:,.0f} GB/s"],
        *([f"{line.name}, each way and node; a hop", f"{line.rate / 1e9:,.4g} GB/s; {line.hop * 1e6:.0f} µs"] for line in model.LINES),
        ["share of a line's rate that is reached", f"{model.REACHED:.0%}"],
        ["a shared file system, in all; a node's own disks", f"{model.STORE / 1e9:,.0f} GB/s; {model.DISK / 1e9:,.0f} GB/s"],
        ["what SyncBatchNorm exchanges for a layer, each time", f"{model.NORM / 1024:.0f} KB"],
        ["DDP's buckets", f"{model.BUCKET >> 20} MB"],
        ["share of a step that is backward", f"{model.BACKWARD:.0%}"],
    ]
    yield from _table(["stated", "figure"], rows)


def _nets(kept: Kept) -> Iterator[str]:
    rows = []
    for net in kept["nets"]:
        one = model.Net(**net)
        seconds = one.compute(one.batch)
        figures = [f"{net['flops'] / 1e9:.3g}", f"{net['bytes'] / 1e6:.3g}", str(net["layers"]), str(net["norms"])]
        rows.append([net["name"], *figures, str(net["batch"]), _short(seconds * 1e3), f"{net['batch'] / seconds:,.0f}"])
    head = ["net", "GFLOP an image", "gradient, MB", "layers", "BatchNorms", "images a GPU", "step on one, ms", "images/s"]
    yield from _table(head, rows)


def _foretold(kept: Kept) -> Iterator[str]:
    names = [net["name"] for net in kept["nets"]]
    kinds = {"as it is": "weak, as it is", "weak": "weak, at best", "strong": "strong, at best"}
    numbers = sorted({row["gpus"] for row in kept["foretold"]})
    rows = []
    for name in names:
        for line in model.LINES:
            found = {row["gpus"]: row for row in kept["foretold"] if (row["net"], row["line"]) == (name, line.name)}
            for kind, title in kinds.items():
                what = f"{title}, {kept['total'][name]:,} images" if kind.startswith("strong") else title
                rows.append([name, line.name.partition(",")[0], what, *(_percent(found[gpus][kind]) for gpus in numbers)])
    yield from _table(["net", "between nodes", "scaling", *(f"{gpus:,}" for gpus in numbers)], rows, left=3)


def _parts(kept: Kept) -> Iterator[str]:
    parts = ("compute, ms", "gradients, ms", "norms, ms", "input, ms", "all, ms", "all-reduce, ms")
    shown = (8, 64, 1024)
    rows = [
        [row["net"], row["line"].partition(",")[0], f"{row['gpus']:,}", *(_short(row[part]) for part in parts)]
        for row in kept["foretold"]
        if row["gpus"] in shown
    ]
    head = ["net", "between nodes", "GPUs", "compute, ms", "gradients, exposed", "BatchNorm", "input", "step", "whole all-reduce"]
    yield from _table(head, rows, left=2)


def _advised(kept: Kept) -> Iterator[str]:
    most = max(row["gpus"] for row in kept["foretold"])
    rows = []
    for row in kept["advised"]:
        enough = f"{row['up to']:,}" if row["up to"] else "none"
        rows.append([row["net"], row["line"].partition(",")[0], row["change"], enough, _percent(row["at most"])])
    yield from _table(["net", "between nodes", "change", "80 % up to, GPUs", f"efficiency on {most:,}"], rows, left=3)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def curves(kept: Kept) -> Figure:
    """Left what was measured beside the model, right what is foretold, by net."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(model.LINES))
    _measured_curves(left, kept)
    for axis, line in zip(others, model.LINES, strict=True):
        for k, net in enumerate(kept["nets"]):
            rows = [row for row in kept["foretold"] if (row["net"], row["line"]) == (net["name"], line.name)]
            numbers = [row["gpus"] for row in rows]
            axis.plot(numbers, [row["weak"] for row in rows], color=f"C{k}", marker=".", label=net["name"])
            axis.plot(numbers, [row["as it is"] for row in rows], color=f"C{k}", linestyle=(0, (3, 2)), linewidth=0.9)
        axis.axhline(0.8, color="gray", linewidth=0.7)
        axis.set(xscale="log", xlabel="GPUs (dashed: as it is)", title=f"computed: {line.name}", ylim=(0, 1.05))
        axis.set_xticks(numbers, [str(number) for number in numbers], rotation=45)
        axis.minorticks_off()
    others[0].set_ylabel("weak efficiency")
    others[0].legend(frameon=False, fontsize=7)
    return figure


def _measured_curves(axis: Axes, kept: Kept) -> None:
    """Seconds that were measured against those predicted: hollow where they were held out."""
    most = max(row["processes"] for row in kept["measured"])
    for k, exchange in enumerate((model.SHARED, model.GLOO)):
        for held_out in (False, True):
            rows = [row for row in kept["measured"] if row["exchange"] == exchange and (row["processes"] == most) == held_out]
            face = "none" if held_out else f"C{k}"
            label = f"{exchange}, {most} processes, held out" if held_out else f"{exchange}, fitted"
            pairs = [(row["predicted"] * 1e3, row["seconds"] * 1e3) for row in rows]
            axis.plot(*zip(*pairs, strict=True), "o", color=f"C{k}", markerfacecolor=face, markersize=4, label=label)
    ends = [min(row["seconds"] for row in kept["measured"]) * 800, max(row["seconds"] for row in kept["measured"]) * 1200]
    axis.plot(ends, ends, color="gray", linewidth=0.7)
    axis.set(xscale="log", yscale="log", xlabel="predicted, ms", ylabel="measured, ms", title="measured: CPU processes")
    axis.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    write(json.loads((RESULTS / "scaling.json").read_text()))
