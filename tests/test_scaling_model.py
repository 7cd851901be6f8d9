"""The models of the time of a step, and the page that tells of them."""

import dataclasses
import itertools
import json

import pytest

import bench.faults  # noqa: F401 (puts `processes` where the benchmark finds it)
from bench import scaling, scaling_page
from bench.measure import RESULTS
from bench.scaling_model import (
    GLOO,
    LINES,
    NVLINK,
    REACHED,
    SHARED,
    START,
    How,
    Net,
    Point,
    all_reduce,
    efficiency,
    fitted,
    moved,
    predicted,
    step,
)

KEPT = json.loads((RESULTS / "scaling.json").read_text())
TRUE = {**START, "overlap": 0.3, "small: fixed": 1e-3, "small: image": 1e-5, "large: fixed": 2e-3, "large: image": 4e-4}
POINTS = [
    Point(net, images, processes, exchange, count, early, 0.0)
    for net, count, early in (("small", 200_000, 0.0), ("large", 40_000_000, 0.75))
    for images in (8, 32, 128)
    for processes, exchange in ((1, SHARED), (2, SHARED), (2, GLOO), (4, SHARED), (4, GLOO))
]
NET = Net("net", 2e10, 10**8, 50, 50, 150_000, 128)


def test_what_follows_the_model_is_foretold_from_half_of_it() -> None:
    points = [dataclasses.replace(point, seconds=predicted(point, TRUE)) for point in POINTS]
    of = fitted([point for point in points if point.processes < 4])
    assert [predicted(point, of) for point in points] == pytest.approx([point.seconds for point in points], rel=0.01)
    every = fitted(points)
    assert {name: every[name] for name in TRUE} == pytest.approx(TRUE, rel=0.05)


def test_one_process_exchanges_nothing() -> None:
    free = {**TRUE, **dict.fromkeys(START, 0.0)}
    assert all(predicted(point, TRUE) == predicted(point, free) for point in POINTS if point.processes == 1)


def test_small_gradients_take_one_meeting_and_large_ones_two() -> None:
    assert moved(100_000, 4) == (500_000, 1)
    assert moved(40_000_000, 4) == (130_000_000, 2)


def test_a_large_sum_on_one_node_takes_what_a_ring_takes() -> None:
    count = 10e9
    assert all_reduce(8, count, LINES[0]) == pytest.approx(2 * 7 / 8 * count / (NVLINK * REACHED), rel=0.01)
    assert all_reduce(1, count, LINES[0]) == 0


def test_more_bytes_more_gpus_and_a_slower_line_never_take_less() -> None:
    for line in LINES:
        times = [[all_reduce(gpus, count, line) for count in (1e3, 1e6, 1e9)] for gpus in scaling.GPUS]
        assert all(few <= many for row, more in itertools.pairwise(times) for few, many in zip(row, more, strict=True))
        assert all(row == sorted(row) for row in times)
    assert all(all_reduce(gpus, 1e8, LINES[0]) <= all_reduce(gpus, 1e8, LINES[1]) for gpus in scaling.GPUS)


def test_the_parts_of_a_step_make_it_up_and_no_change_for_the_better_makes_it_worse() -> None:
    for line in LINES:
        for gpus in scaling.GPUS:
            parts = step(NET, gpus, line)
            assert parts["all"] == pytest.approx(sum(parts[name] for name in ("compute", "gradients", "norms", "input")))
            best = efficiency(NET, gpus, line, scaling.BEST)
            assert efficiency(NET, gpus, line) <= best <= 1
            assert best <= efficiency(NET, gpus, line, How(local=True, sync=False, larger=4)) + 1e-12
            assert best >= efficiency(NET, gpus, line, How(local=True, sync=False, sharded=True))


def test_the_share_that_can_overlap_is_that_before_the_last_bucket() -> None:
    count, early = scaling.gradient(scaling.NETS["LeNet-5"].spec)
    assert (count, early) == (4 * 44_426, 0)
    count, early = scaling.gradient(scaling.NETS["MLP"].spec)
    assert early == pytest.approx(1 - 4 * (784 + 1) * 3000 / count)


def test_the_page_says_what_was_measured_and_what_is_computed_now() -> None:
    page = (scaling_page.DOCS / "scaling.md").read_text()
    assert scaling_page.filled(page, KEPT) == page
    nets = [Net(**net) for net in KEPT["nets"]]
    assert scaling.foretold(nets) == [pytest.approx(row) for row in KEPT["foretold"]]
    assert scaling.advised(nets) == [pytest.approx(row) for row in KEPT["advised"]]
