"""`pipeline demo`: what is drawn is read as the data set's own images are, and the page asks nobody but us."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from cluster import until
from conftest import TINY
from numpy.typing import NDArray
from processes import begin, launch
from watching import CHROMIUM, MISSING, Seen, chromium, opened

from pipeline.data.images import pixels
from pipeline.demo.answers import answer
from pipeline.demo.drawing import INK, drawn, prepared
from pipeline.errors import DataError
from pipeline.predict.exported import About, Exported

GRADIO, NO_GRADIO = find_spec("gradio") is not None, "Gradio is not installed: ./setup dev"
MNIST = About(shape=(1, 28, 28), classes=[str(k) for k in range(10)], source="mnist")
WITHOUT_GRADIO = """
import sys
sys.modules["gradio"] = None  # as if it were not there
from pipeline.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
Point = tuple[float, float]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export of grey images."""
    folder = tmp_path_factory.mktemp("demo")
    ended = launch(folder, ["run", *TINY, "train.epochs=1", "data.source={name: synthetic, channels: 1}", "train.augment=[]"])
    assert ended.code == 0, ended.output
    return folder


def sketch(points: Sequence[Point], thick: int = 20) -> NDArray[np.uint8]:
    """A line through `points`, white on a black canvas of 280 x 280."""
    from PIL import ImageDraw

    canvas = PIL.Image.new("L", (280, 280))
    ImageDraw.Draw(canvas).line(points, fill=255, width=thick, joint="curve")
    return np.asarray(canvas)


@pytest.mark.parametrize(("x", "y", "size"), [(30, 30, 100), (120, 90, 100), (20, 15, 220)])
def test_a_drawing_is_made_as_mnist_was_wherever_and_however_large_it_is(x: int, y: int, size: int) -> None:
    seven = [(x, y), (x + size * 0.6, y), (x + size * 0.2, y + size)]
    image = prepared(sketch(seven, size // 10), MNIST)
    assert image is not None
    assert image.shape == (1, 28, 28)
    rows, columns = np.nonzero(image[0])
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    weight = image[0] / image[0].sum()
    for axis in (0, 1):
        assert abs((np.arange(28) + 0.5) @ weight.sum(1 - axis) - 14) <= 0.5


def test_where_nothing_is_drawn_nothing_is_said(place: Path) -> None:
    assert prepared(np.zeros((280, 280), np.uint8), MNIST) is None
    assert answer(Exported.of(place / "runs/tiny"), None) == (None, "")


def test_an_enlarged_digit_of_scikit_learn_becomes_the_image_of_the_data_set_again() -> None:
    from sklearn.datasets import load_digits

    greys = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    middling = [grey for grey in greys if grey[:, [1, 6]].max(0).min() > INK and not grey[:, [0, 7]].any()]
    assert len(middling) > 100  # those that are as far from the left as from the right; above and below there is no margin
    for grey in middling:
        made = prepared(np.kron(grey, np.ones((35, 35), np.uint8)), MNIST.model_copy(update={"source": "digits"}))
        large = PIL.Image.fromarray(grey).resize((28, 28), PIL.Image.Resampling.BICUBIC)  # as in `data.datasets.digits`
        np.testing.assert_array_equal(made, np.asarray(large)[None])


@pytest.mark.parametrize(
    "link", ["", "data:image/png;base64,", "data:image/png;base64,bm8gaW1hZ2U=", "data:image/png;base64,&", "http://x/"]
)
def test_a_drawing_that_is_none_is_refused(link: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        drawn(link)


def test_the_page_says_what_predict_says(place: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 12, 12)).astype(np.uint8)
    PIL.Image.fromarray(image[0]).save(place / "image.png")
    said, shown = answer(Exported.of(place / "runs/tiny"), image)
    (row,) = map(json.loads, launch(place, ["predict", "tiny", "image.png", "--format", "jsonl", "--top", "4"]).output.splitlines())
    assert said is not None
    assert said == pytest.approx({one["class"]: one["probability"] for one in row["top"]}, abs=1e-6)
    (link,) = re.findall(r'src="([^"]+)"', shown)
    np.testing.assert_array_equal(drawn(link), image[0])


def test_without_gradio_one_line_says_how_to_install_it(place: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_GRADIO, "demo", "tiny"]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "pipeline: the demo is a page of Gradio, which is not installed; ./setup demo installs it\n"


def test_a_port_that_is_taken_and_an_export_that_is_none_are_told(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = launch(place, ["demo", "tiny", "--port", str(taken.getsockname()[1])])
    assert (ended.code, len(ended.output.splitlines())) == (2, 1)
    assert "choose another --port or --host" in ended.output
    assert launch(place, ["demo", "none"]).code == 2


@contextlib.contextmanager
def served(folder: Path, *words: str) -> Iterator[str]:
    """The address of a demo, which Ctrl-C ends, as it should, if nothing else has failed."""
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    (process,) = begin(folder, ["demo", *words, "--port", "0"])
    try:
        until(lambda: output.exists() and "Ctrl-C" in output.read_text(), 60, lambda: output.read_text())
        yield re.findall(r"http://\S+", output.read_text())[0]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert (process.exitcode, output.read_text().splitlines()[-1]) == (0, "demo: ended")
    finally:
        process.kill()


def asked(address: str, sent: bytes | None = None, **headers: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, sent, headers), timeout=30) as answered:
            return answered.status, answered.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


UPLOADED = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\na\r\n--x--\r\n'


@pytest.mark.skipif(not GRADIO, reason=NO_GRADIO)
def test_the_page_is_for_this_machine_and_may_ask_for_nothing_else_until_ctrl_c(place: Path) -> None:
    with served(place, "tiny") as address:
        assert address.startswith("http://127.0.0.1:")
        code, headers = asked(address)
        assert (code, headers["Content-Security-Policy"].split(";")[0]) == (200, "default-src 'self' data: blob:")
        assert asked(address, Host="attacker.example")[0] == 421
        assert asked(f"{address}gradio_api/upload", UPLOADED, **{"Content-Type": "multipart/form-data; boundary=x"})[0] == 403
    with pytest.raises(urllib.error.URLError):
        asked(address)


def lines(ink: NDArray[np.bool_]) -> Iterator[list[tuple[int, int]]]:
    """The ways, from pixel to neighbouring pixel, of a pen that goes over all ink, and back over its own line where it must."""
    left = {(int(row), int(column)) for row, column in np.argwhere(ink)}
    around = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    while left:
        open_ends = [min(left)]
        left -= {*open_ends}
        way = [*open_ends]
        while open_ends:
            row, column = open_ends[-1]
            if further := next((p for i, j in around if (p := (row + i, column + j)) in left), None):
                left.remove(further)
                open_ends.append(further)
                way.append(further)
            else:
                open_ends.pop()
                way += open_ends[-1:]
        yield way


def draw(seen: Seen, ink: NDArray[np.bool_]) -> str:
    """What the page says of `ink`, [8, 8], after it was drawn by the mouse on a cleared canvas."""
    page = seen.page
    page.click("#asked button")
    box = page.locator("#asked canvas").bounding_box()
    assert box is not None
    cell = box["width"] / 8
    for way in lines(ink):
        for k, (row, column) in enumerate(way):
            page.mouse.move(box["x"] + (column + 0.5) * cell, box["y"] + (row + 0.5) * cell)
            if k == 0:
                page.mouse.down()
        page.mouse.up()
    image = prepared(
        drawn(page.evaluate("document.querySelector('#asked canvas').toDataURL()")), MNIST.model_copy(update={"source": "digits"})
    )
    return said(seen, image)


def said(seen: Seen, image: NDArray[np.uint8] | None) -> str:
    """The class on the page, once it is that of `image`."""

    def looked_at() -> NDArray[np.uint8] | None:
        links = re.findall(r'src="([^"]+)"', seen.page.inner_html("#seen"))
        return drawn(links[0])[None] if links else None

    until(lambda: np.array_equal(looked_at(), image), 60, lambda: seen.page.inner_text("#seen"))  # type: ignore[arg-type]
    return seen.page.inner_text("#answer h2")


def words(seen: Seen) -> tuple[str, int]:
    """Those below the answer, and how many answers there are."""
    return seen.page.inner_text("#seen"), seen.page.locator("#answer h2, #seen img").count()


@pytest.mark.soak
@pytest.mark.skipif(not GRADIO, reason=NO_GRADIO)
@pytest.mark.skipif(not CHROMIUM, reason=MISSING)
def test_digits_drawn_in_a_browser_are_read_and_pictures_as_by_predict(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    assert launch(tmp_path, ["run", "run.trackers=[]", "run.name=digits", "train.epochs=20"]).code == 0
    known = load_digits()
    fifth = [np.flatnonzero(known.target == k)[4] for k in range(10)]  # of each class: those are in the test split
    three = PIL.Image.fromarray(np.rint(known.images[fifth[3]] * (255 / 16)).astype(np.uint8))
    three.convert("RGBA").save(tmp_path / "three.png")
    three.save(tmp_path / "moving.gif", save_all=True, append_images=[three.rotate(90)])
    (tmp_path / "empty.png").touch()
    (tmp_path / "<b>words.png").write_text("no image")
    (tmp_path / "broken.png").write_bytes((tmp_path / "three.png").read_bytes()[:60])
    with served(tmp_path, "digits") as address, chromium() as browser, opened(browser, address) as seen:
        seen.page.wait_for_selector("#asked canvas")
        assert "light on dark" in seen.page.inner_text("#asked p")
        found = [draw(seen, known.images[k] > 7) for k in fifth]
        assert sum(int(one) == k for k, one in enumerate(found)) >= 9, found
        for name in ("empty.png", "three.png", "<b>words.png", "moving.gif", "broken.png"):
            seen.page.set_input_files("#asked input", tmp_path / name)
            if name in ("three.png", "moving.gif"):
                assert said(seen, pixels(tmp_path / name, 1, (28, 28))) == "3"
            else:
                seen.page.wait_for_selector(f"#seen :text('cannot read the image {name}: ')")
                until(lambda: words(seen)[1] == 0, 60, lambda: str(words(seen)))
        for _ in range(5):  # the last thing done is what is shown
            seen.page.set_input_files("#asked input", tmp_path / "three.png")
            seen.page.click("#asked button")
        until(lambda: words(seen) == ("", 0), 60, lambda: str(words(seen)))
        assert seen.complaints == []
        assert seen.elsewhere == []
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


@pytest.mark.soak
@pytest.mark.skipif(not GRADIO, reason=NO_GRADIO)
@pytest.mark.skipif(not CHROMIUM, reason=MISSING)
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_what_is_drawn_and_what_is_said_are_seen_at_once(place: Path, width: int, height: int) -> None:
    with served(place, "tiny") as address, chromium() as browser, opened(browser, address, width=width, height=height) as seen:
        seen.page.click("#asked canvas")
        seen.page.wait_for_selector("#answer h2")
        for part in ("#asked canvas", "#answer h2"):
            box = seen.page.locator(part).bounding_box()
            assert box is not None
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= height
        assert seen.cut <= 0
