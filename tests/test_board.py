"""`pipeline board` shows what known runs tell of themselves, to a browser of this machine, and nothing else to nobody."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import watching
from cluster import until
from conftest import TINY
from processes import begin, free_port, launch

from pipeline.board.curves import MOST, Curves, thinned
from pipeline.board.server import Board, Server
from pipeline.runs import Run, read


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny experiment was run, until its report."""
    folder = tmp_path_factory.mktemp("made")
    assert launch(folder, ["evaluate", *TINY]).code == 0
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "runs"


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    with Server(Board(runs), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def told(server: Server, path: str) -> dict[str, Any]:
    """The JSON at `path`, which must be JSON to everybody: without NaN."""
    status, body = asked(server, path)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body, parse_constant=pytest.fail)
    return found


def test_the_page_and_all_that_it_needs_is_served_from_here(server: Server) -> None:
    page = asked(server, "/")[1].decode()
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert needed == ["data:,", "page.css", "plotly.min.js", "page.js"]
    assert all(asked(server, f"/{name}")[0] == 200 for name in needed[1:])


def test_runs_and_curves_are_those_of_the_files(server: Server, runs: Path) -> None:
    assert told(server, "/api/runs")["runs"] == [run.facts() for run in read(runs).found]
    found = told(server, "/api/curves?run=tiny")
    lines = [json.loads(line) for line in (runs / "tiny/metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "validation/accuracy"):
        points = [(line["step"], line[name]) for line in lines if name in line]
        assert list(zip(found["series"][name]["x"], found["series"][name]["y"], strict=True)) == points
    assert found["settings"]["train.lr"] == "0.05"
    images = json.loads((runs / "tiny/prepare/manifest.json").read_text())["result"]["counts"]["train"]
    assert told(server, "/api/curves?run=tiny&x=epoch")["series"]["train/loss"]["x"][-1] == 61 / (images / 12)


def test_time_is_that_of_training(server: Server, runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "tiny/train/timings.jsonl").read_text().splitlines()]
    speeds = {line["step"]: line["images/s"] for line in lines if "images/s" in line}
    seconds = [(step - before) * 12 / speed for before, (step, speed) in zip([0, *speeds], speeds.items(), strict=False)]
    found = told(server, "/api/curves?run=tiny&x=seconds")["series"]
    assert found["train/loss"]["x"] == pytest.approx(np.cumsum(seconds))
    assert found["validation/loss"]["x"][-1] == found["train/loss"]["x"][-1]


def test_a_report_and_a_journal_are_served_as_they_are(server: Server, runs: Path) -> None:
    for name in ("report/index.html", "metrics.jsonl"):
        assert asked(server, f"/files/tiny/{name}") == (200, (runs / "tiny" / name).read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page.html/../../main.py",
        "/server.py",
        "/files/../artifacts",
        "/files/tiny/../tiny/config.yaml",
        "/files/tiny/config.yaml",
        "/files/tiny/status.json",
        "/files/tiny/report/",
        "/files/tiny/report/..",
        "/files/tiny/report/../metrics.json",
        "/files/tiny/report/..%2fmanifest.json",
        "/files/tiny/report/%2e%2e/manifest.json",
        "/files/tiny/report//etc/passwd",
        "/files/tiny/report/index.html%00.png",
        "/files/tiny/train/weights.safetensors",
        "/files/%2e%2e/runs/tiny/metrics.jsonl",
        "/files//metrics.jsonl",
        "/files/nobody/metrics.jsonl",
        "/api/curves",
        "/api/curves?run=nobody",
        "/api/curves?run=../runs/tiny",
        "/api/curves?run=tiny/../tiny",
        "//127.0.0.1/files/../../etc/passwd",
    ],
)
def test_nothing_else_is_to_be_had(server: Server, path: str) -> None:
    assert asked(server, path)[0] == 404


def test_links_lead_nowhere_else(server: Server, runs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "report").mkdir(parents=True)
    for name in ("report/index.html", "metrics.jsonl"):
        (secret / name).write_text('{"step": 1, "train/loss": 1}\n')
    for name in ("report", "metrics.jsonl"):
        (runs / "tiny" / name).unlink()
        (runs / "tiny" / name).symlink_to(secret / name)
    assert [asked(server, f"/files/tiny/{name}")[0] for name in ("report/index.html", "metrics.jsonl")] == [404, 404]
    assert told(server, "/api/curves?run=tiny")["series"] == {}
    assert not told(server, "/api/runs")["runs"][0]["report"]


def test_a_link_among_the_pictures_is_not_followed(server: Server, runs: Path) -> None:
    (runs / "tiny/report/page.html").symlink_to("/etc/passwd")
    assert asked(server, "/files/tiny/report/page.html")[0] == 404


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_it_can_only_be_read(server: Server, method: str) -> None:
    assert asked(server, "/api/runs", method)[0] == 405


@pytest.mark.parametrize("words", [b"BREW <b>/</b> HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_is_refused_in_plain_text(server: Server, words: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(words)
        status, _, rest = connection.makefile("rb").read().partition(b"\r\n")
    assert re.match(rb"HTTP/1.1 (414|501) ", status + b" ")
    assert b"text/plain" in rest
    assert b"<" not in rest


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8765", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example:8765", 421),
        ("", 421),
    ],
)
def test_a_foreign_name_that_was_made_to_lead_here_is_refused(server: Server, host: str, status: int) -> None:
    assert asked(server, "/api/runs", Host=host)[0] == status


def test_runs_with_any_name_and_numbers_that_are_none_are_told(server: Server, runs: Path) -> None:
    name = 'a&b "<script>alert(1)" %2e ?#ü'
    (runs / "tiny").rename(runs / name)
    journal = (runs / name / "metrics.jsonl").resolve()
    journal.write_text('{"step": 1, "train/loss": NaN}\n{"step": 2, "train/loss": Infinity}\n{"step": 3, "train/loss": 2.5}\n{"step":')
    assert [run["name"] for run in told(server, "/api/runs")["runs"]] == [name]
    assert told(server, f"/api/curves?run={quote(name)}")["series"]["train/loss"]["y"] == [None, None, 2.5]
    assert asked(server, f"/files/{quote(name)}/report/index.html")[0] == 200


def test_a_number_that_no_computer_holds_is_left_out(server: Server, runs: Path) -> None:
    huge = "1" + "0" * 400
    journal = (runs / "tiny/metrics.jsonl").resolve()
    journal.write_text(f'{{"step": 1, "train/loss": {huge}}}\n{{"step": {huge}, "train/loss": 1}}\n{{"step": 3, "train/loss": 2.5}}\n')
    assert told(server, "/api/curves?run=tiny")["series"]["train/loss"] == {"x": [3], "y": [2.5], "of": 1}


def test_a_configuration_that_holds_itself_is_refused(server: Server, runs: Path) -> None:
    (runs / "tiny/config.yaml").write_text("train: &t {model: *t}\n")
    assert asked(server, "/api/curves?run=tiny")[0] == 404
    assert "tiny is left out: its config.yaml is not YAML" in told(server, "/api/runs")["left_out"][0]


def test_a_folder_that_is_gone_is_said(server: Server, runs: Path) -> None:
    shutil.rmtree(runs)
    status, body = asked(server, "/api/runs")
    assert status == 503
    assert b"no folder of runs" in body


def test_a_long_curve_keeps_its_spikes_and_its_ends() -> None:
    values = np.random.default_rng(0).random(123_457)
    values[[5_000, 77_777]] = 9, -9
    values[60_000:61_000] = np.nan
    kept = thinned(values)
    assert len(kept) <= MOST
    assert {0, 5_000, 77_777, 123_456} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert thinned(values[:MOST]).tolist() == list(range(MOST))


def shown(curves: Curves, run: Run) -> list[float]:
    found = curves.shown(run, "step")["series"].get("train/loss", {"x": []})
    return list(found["x"])


def test_curves_grow_by_whole_lines_and_begin_anew_where_a_restart_dropped_some(runs: Path) -> None:
    (run,) = read(runs).found
    place, line = runs / "grows", '{{"step": {}, "train/loss": 1.5}}\n'
    place.mkdir()
    curves, journal = Curves(place), place / "metrics.jsonl"
    assert shown(curves, run) == []
    journal.write_text(line.format(1) + line.format(2)[:10])
    assert shown(curves, run) == [1]
    with journal.open("a") as file:
        file.write(line.format(2)[10:] + line.format(3) + line.format(4))
    assert shown(curves, run) == [1, 2, 3, 4]
    journal.unlink()
    journal.write_text(line.format(1) + line.format(2) + line.format(20) + line.format(30) + line.format(40))
    assert shown(curves, run) == [1, 2, 20, 30, 40]


def test_a_restart_is_marked(runs: Path) -> None:
    (run,) = read(runs).found
    (runs / "t").mkdir()
    start = '{{"step": {}, "start": "2026-01-01T00:00:00+0000"}}\n'
    (runs / "t/timings.jsonl").write_text(start.format(0) + '{"step": 50, "images/s": 3}\n' + start.format(50))
    assert Curves(runs / "t").shown(run, "step")["starts"] == [50]


def test_it_takes_the_next_free_port_but_not_in_the_place_of_one_that_was_asked_for(runs: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        ended = launch(runs.parent, ["board", "--port", str(taken.getsockname()[1])])
    assert ended.code == 2
    assert ended.output.endswith("Address already in use; choose another --port or --host\n")
    assert len(ended.output.splitlines()) == 1


def test_without_plotly_it_says_what_to_do(runs: Path) -> None:
    ended = launch(runs.parent, ["board"], before=_without_plotly)
    assert (ended.code, ended.output) == (1, "pipeline: the board draws with plotly, which is not installed; ./setup installs it\n")


def _without_plotly(_: int) -> None:
    import sys

    sys.modules["plotly"] = None  # type: ignore[assignment]


needs_browser = pytest.mark.skipif(bool(watching.MISSING), reason=watching.MISSING)


@needs_browser
def test_in_a_browser_a_run_grows_while_it_trains(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    hostile = "<img src=x onerror=alert(1)><script>alert(2)"
    (tmp_path / "runs/tiny").rename(tmp_path / "runs" / hostile)
    (tmp_path / "of the board").mkdir()
    (trains,) = begin(tmp_path, ["train", *TINY, "train.epochs=100000", "run.name=live", "run.checkpoint_every=1000000"])
    (board,) = begin(tmp_path / "of the board", ["board", str(tmp_path / "runs"), "--port", "0"])
    output = tmp_path / "of the board/output.txt"
    try:
        until(lambda: output.exists() and "http://" in output.read_text(), 60, lambda: "no address")
        until((tmp_path / "runs/live/metrics.jsonl").exists, 60, lambda: (tmp_path / "output.txt").read_text())
        (address,) = re.findall(r"http://\S+", output.read_text())
        with watching.chromium() as chromium, watching.opened(chromium, f"{address}#live,{quote(hostile)}") as seen:
            _look(seen, hostile)
    finally:
        for process in (trains, board):
            assert process.pid
            os.kill(process.pid, signal.SIGINT)
            process.join(60)
    assert (trains.exitcode, board.exitcode) == (75, 0)
    assert output.read_text().splitlines()[1:] == ["board: ended"]


def _look(seen: watching.Seen, hostile: str) -> None:
    """All runs are there as text, all curves are drawn, and those of the run that trains become longer."""
    page = seen.page

    def last() -> int:  # step that is shown; of more than MOST points the number may stay the same
        return int(page.evaluate("document.querySelector('.chart')?.data?.[0]?.x.at(-1) ?? 0"))

    until(lambda: last() > 0, 60, lambda: str(seen.complaints))
    before = last()
    until(lambda: last() > before, 60, lambda: str(seen.complaints))
    assert [label.strip() for label in page.locator("#rows label").all_inner_texts()] == ["live", hostile]
    charts = page.locator(".chart").evaluate_all("charts => charts.map(chart => chart.dataset.name)")
    assert charts[:3] == ["loss", "accuracy", "lr"]
    assert "images/s" in charts
    lines = page.locator(".chart").first.locator(".trace path.js-line")
    until(lambda: lines.count() == 4, 60, lambda: str(seen.complaints))  # training and validation, of two runs
    assert page.locator("#settings tr td:first-child").all_inner_texts() == ["train.epochs", "run.checkpoint_every"]
    assert page.locator("#ticked button").all_inner_texts() == ["live", hostile]
    page.get_by_role("button", name="test", exact=True).click()  # what has not been tested comes last
    assert [label.strip() for label in page.locator("#rows label").all_inner_texts()] == [hostile, "live"]
    page.get_by_label("filter").fill("state:run lenet")
    assert [label.strip() for label in page.locator("#rows label").all_inner_texts()] == ["live"]
    assert page.evaluate("document.querySelectorAll('#rows img, #rows script, .chart img').length") == 0
    assert seen.cut == 0
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    until(lambda: page.locator(".chart .main-svg").first.evaluate("chart => chart.clientWidth") <= 370, 60, lambda: "too wide for a phone")
    assert seen.cut == 0
    assert (seen.complaints, seen.elsewhere) == ([], [])
