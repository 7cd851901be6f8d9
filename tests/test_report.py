"""The page of a run: what is on it, that it is made from the artifacts alone, and that it can fail without harm."""

import errno
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.figure
import numpy as np
import PIL.Image
import pytest
import watching
from cluster import until
from conftest import TINY, Run
from processes import launch

from pipeline.runtime import files
from pipeline.stages.report import charts
from pipeline.stages.report.theme import svg

PAGE = "runs/tiny/report/index.html"
NAMES = ["<b>&amp;'\"", "$x_1$ {{ 7 * 7 }}", "汉字 " + "very " * 8 + "long"]
BROKEN = '"warning">This part could not be drawn'  # as markup: the page shows what of our code is not committed, too
FOLDER = ["data.source=folder", "data.root=raw", "train.batch_size=6", "train.augment=[]", "data.validation=0.2"]


class Text(HTMLParser):
    """Words and tags, as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[tuple[str, dict[str, str | None]]]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three classes of strange names, that was gone on with at step 20, with its page."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        (folder / "raw" / name).mkdir(parents=True)
        for j in range(30):
            pixels = np.clip(rng.integers(0, 120, (12, 12, 3)) + 60 * k, 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(folder / "raw" / name / f"{j}.png")
    assert launch(folder, ["train", *TINY, *FOLDER], stop_at=20).code == 75
    ended = launch(folder, ["evaluate", *TINY, *FOLDER])
    assert ended.code == 0, ended.output
    return folder


def page(folder: Path) -> str:
    return (folder / PAGE).read_text()


def test_names_are_shown_as_they_are_and_are_never_markup(odd: Path) -> None:
    found = Text(page(odd))
    for name in NAMES:
        assert name in found.text
    assert not any(tag == "b" and "class" not in attributes for tag, attributes in found.tags)


@pytest.mark.parametrize("name", ['a id="ax_1"', "font: 12px Z", "#010200"])
def test_a_name_that_reads_like_a_part_of_a_chart_is_shown_as_it_is(name: str) -> None:
    chart = svg(lambda colors: charts.matrix(np.eye(2, dtype=np.int64), [name, "other"], colors), "")
    assert name in Text(chart).text


def test_the_page_has_all_its_parts_and_none_is_broken(odd: Path) -> None:
    found = Text(page(odd))
    for title in ("Learning curves", "Confusion", "Classes", "Calibration", "Most confident mistakes", "Sample predictions", "Provenance"):
        assert title in found.text
    assert BROKEN not in page(odd)
    assert "no test folder: every fifth image" in found.text, "notes of prepare"
    assert re.search(r"95 % interval [\d.]+\s% to [\d.]+\s% \(Wilson\)", found.text)
    labels = [attributes.get("aria-label") or "" for tag, attributes in found.tags if tag == "svg"]
    for chart in (
        "Chart of the loss",
        "Chart of the accuracy",
        "Chart of the learning rate",
        "images a second",
        "norm of the gradient",
        "share of the time spent waiting",
        "Confusion",
        "Reliability",
    ):
        assert sum(chart in label for label in labels) == 1
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")


def test_the_page_needs_no_other_file(odd: Path) -> None:
    for tag, attributes in Text(page(odd)).tags:
        for name in ("src", "href", "srcset", "xlink:href", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    styles = "".join(re.findall(r"<style>.*?</style>|style=\"[^\"]*\"", page(odd), re.DOTALL))
    assert "var(--train)" in styles
    assert not re.search(r"url\((?!#)|@import", styles)


def test_it_says_what_departs_from_the_defaults_and_where_all_comes_from(odd: Path) -> None:
    found = page(odd)
    departing = re.findall(r'<tr class="departs"><td>([\w.]+)</td>', found)
    assert {"data.source", "train.model", "train.epochs", "train.batch_size", "train.lr", "train.augment"} <= set(departing)
    assert "train.optimizer" not in departing
    manifest = json.loads((odd / "runs/tiny/train/manifest.json").read_text())
    text = Text(found).text
    for said in ((odd / "runs/tiny/train").resolve().name, manifest["environment"]["torch"], manifest["environment"]["host"]):
        assert said in text
    assert manifest["environment"]["command"] in text


def test_it_is_made_again_when_it_is_missing_and_by_a_command_with_the_same_bytes(odd: Path) -> None:
    made = page(odd)
    (odd / PAGE).unlink()
    assert "evaluate: fresh" in launch(odd, ["evaluate", *TINY, *FOLDER]).output
    assert page(odd) == made
    (odd / PAGE).write_text("harmed")
    ended = launch(odd, ["report", "runs/tiny"])
    assert (ended.code, ended.output) == (0, "  report   runs/tiny/report/index.html\n")
    assert page(odd) == made
    (odd / PAGE).write_text("harmed")
    launch(odd, ["evaluate", *TINY, *FOLDER])
    assert page(odd) == "harmed", "an evaluation is as fresh with any page"


def test_restarts_are_marked(odd: Path) -> None:
    timings = odd / "runs/tiny/train/timings.jsonl"
    before = timings.read_text()
    lines = [line for text in before.splitlines() if "start" not in (line := json.loads(text))]
    starts = [{"step": step, "start": "2026-11-22T17:00:00+01:00"} for step in (0, 20)]
    timings.write_text("".join(json.dumps(line) + "\n" for line in sorted([*starts, *lines], key=lambda line: line["step"])))
    assert launch(odd, ["report", "runs/tiny"]).code == 0
    timings.write_text(before)
    assert "The training was gone on with at step 20." in page(odd)
    assert "; 1 restart<" in page(odd)


def test_the_smallest_training_has_a_page(run: Run, tmp_path: Path) -> None:
    ended = run("train.model=mlp", "train.steps=1", "data.validation=0", "evaluate.views=[mirror]", until="evaluate")
    assert ended.code == 0, ended.output
    assert "report" not in re.sub(r"  report .*", "", ended.output)
    text = Text(page(tmp_path)).text
    assert "There was no validation split" in text
    assert "mlp has no convolution" in text
    assert "test accuracy, mean of views" in text
    assert BROKEN not in page(tmp_path)


def without_savefig(_: int) -> None:
    """As a library would that cannot draw."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    matplotlib.figure.Figure.savefig = broken  # type: ignore[method-assign]


def without_jinja(_: int) -> None:
    import jinja2

    def broken(*_: object) -> None:
        raise jinja2.TemplateError("no paper")

    jinja2.Environment.get_template = broken  # type: ignore[assignment]


def test_a_chart_that_cannot_be_drawn_is_said_and_harms_nothing(run: Run, tmp_path: Path) -> None:
    whole = run(until="evaluate", in_folder="whole")
    broken = run(until="evaluate", in_folder="broken", before=without_savefig)
    assert (whole.code, broken.code) == (0, 0), broken.output
    assert "report: confusion could not be drawn: RuntimeError: no ink" in broken.output
    assert page(tmp_path / "broken").count("This part could not be drawn: RuntimeError: no ink") == 8
    assert "interval" in page(tmp_path / "broken")
    results = [(tmp_path / name / "runs/tiny/evaluate/metrics.json").read_bytes() for name in ("whole", "broken")]
    assert results[0] == results[1]


def test_a_page_that_cannot_be_made_is_said_and_harms_nothing(run: Run, tmp_path: Path) -> None:
    ended = run(until="evaluate", before=without_jinja)
    assert ended.code == 0, ended.output
    assert "report: the page could not be made: TemplateError: no paper; try `pipeline report runs/tiny`" in ended.output
    assert not (tmp_path / PAGE).exists()
    assert launch(tmp_path, ["report", "runs/tiny"]).code == 0
    assert "no paper" not in page(tmp_path)


def without_room(_: int) -> None:
    """As on a disk that is full when a picture comes."""
    write = files.write_whole

    def full(path: Path, content: bytes | str, aside: Path | None = None) -> None:
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, aside)

    files.write_whole = full


def test_a_picture_for_trackers_that_has_no_room_costs_no_evaluation(run: Run, tmp_path: Path) -> None:
    ended = run("train.steps=1", "run.trackers=[tensorboard]", until="evaluate", before=without_room)
    assert ended.code == 0, ended.output
    assert "evaluate: the picture confusion could not be drawn: OSError: [Errno 28] No space left on device" in ended.output
    assert (tmp_path / "runs/tiny/evaluate/manifest.json").is_file()


def test_an_evaluation_that_fails_its_gate_has_a_page_that_says_so(run: Run, tmp_path: Path) -> None:
    ended = run("evaluate.min_accuracy=1", "train.steps=1", until="evaluate")
    assert ended.code == 4, ended.output
    assert "This evaluation did not pass its gate" in page(tmp_path)
    before = page(tmp_path)
    assert launch(tmp_path, ["report", "runs/tiny"]).code == 0
    assert page(tmp_path) == before
    run("train.steps=2", until="train")
    ended = launch(tmp_path, ["report", "runs/tiny"])
    assert ended.code == 2, "its figures are those of another training"
    assert "runs/tiny: its training is not the one that was evaluated" in ended.output
    assert page(tmp_path) == before


def test_what_cannot_be_reported_on_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    run(until="train")
    ended = launch(tmp_path, ["report", "runs/tiny"])
    assert ended.code == 2
    assert ended.output == "pipeline: runs/tiny has no evaluation to report on; `pipeline evaluate` with its configuration makes one\n"
    run("train.steps=2", until="evaluate")
    run("train.steps=3", until="train")
    ended = launch(tmp_path, ["report", "runs/tiny"])
    assert "runs/tiny: its training is not the one that was evaluated" in ended.output
    predictions = tmp_path / "runs/tiny/report/../predictions.safetensors"
    predictions.write_bytes(predictions.read_bytes()[:-1])
    assert "is damaged: predictions.safetensors has the wrong size" in launch(tmp_path, ["report", "runs/tiny"]).output


def test_a_disk_that_takes_no_page_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    run("train.steps=1", until="evaluate")
    place = (tmp_path / "runs/tiny/report").resolve()
    (place / "index.html").unlink()
    place.rmdir()
    place.touch()
    ended = launch(tmp_path, ["report", "runs/tiny"])
    assert (ended.code, ended.output) == (1, f"pipeline: File exists: {place}\n")


def test_the_page_of_an_earlier_version_which_is_part_of_the_evaluation_is_left_alone(run: Run, tmp_path: Path) -> None:
    run("train.steps=1", until="evaluate")
    place = (tmp_path / "runs/tiny/evaluate").resolve()
    manifest, _ = files.read_manifest(place)
    assert manifest
    files.write_manifest(place, {**manifest, "outputs": {**manifest["outputs"], **files.seal(place, ["report/index.html"])}})
    before = page(tmp_path)
    ended = launch(tmp_path, ["report", "runs/tiny"])
    assert ended.code == 2
    assert ended.output.endswith("an earlier version evaluated it, and its page cannot change; `pipeline evaluate` makes both again\n")
    assert page(tmp_path) == before


needs_browser = pytest.mark.skipif(bool(watching.MISSING), reason=watching.MISSING)


@needs_browser
def test_a_browser_shows_all_of_it_on_a_desk_and_on_a_phone_without_a_complaint(odd: Path, tmp_path: Path) -> None:
    curious = tmp_path / "curious.html"
    curious.write_text(page(odd).replace("</main>", '<img src="http://127.0.0.1:9/x.png" alt=""></main>'))
    with watching.chromium() as chromium:
        for width in (1280, 390):
            with watching.opened(chromium, (odd / PAGE).as_uri(), width=width) as seen:
                found = seen.layout()
                assert (seen.complaints, seen.elsewhere, seen.cut) == ([], [], 0)
                assert (found["charts"], found["images"]) == (8, len(re.findall("<img ", page(odd))))
                assert (found["cut"], found["over"]) == ([], [])
        with watching.opened(chromium, curious.as_uri()) as seen:
            until(lambda: "Content Security Policy" in seen.said(), 30, lambda: "it fetches nothing, and would say so")


@needs_browser
def test_a_browser_shows_it_light_or_dark_charts_included(odd: Path) -> None:
    with watching.chromium() as chromium:
        with watching.opened(chromium, (odd / PAGE).as_uri()) as seen:
            light = seen.layout()
        with watching.opened(chromium, (odd / PAGE).as_uri(), dark=True) as seen:
            dark = seen.layout()
    assert light["paper"] == "rgb(255, 255, 255)" != dark["paper"]
    assert light["chart_ink"] == light["ink"] != dark["ink"] == dark["chart_ink"]
