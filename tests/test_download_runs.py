"""Runs whose data are to be downloaded: at once, killed, stopped, on a full disk, in a folder that nobody may write to, offline."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cluster import until
from conftest import TINY, Run
from processes import begin
from terminal import NOT_CI, Terminal
from test_datasets import write_mnist
from web import Answer, Web, stalls, well

from bench.faults import mounts
from pipeline.data.classics import MNIST_FILES

LARGEST = "/train-images-idx3-ubyte.gz"


def published(served: Path, rank: int) -> None:
    """`before` of `begin`: what is in that folder is what MNIST's authors published."""
    from pipeline.data import classics
    from pipeline.data import download as limits

    for path in served.iterdir():
        content = path.read_bytes()
        classics.MNIST_PUBLISHED[path.name] = limits.Published(len(content), hashlib.sha256(content).hexdigest())
    limits.PAUSES = (0.0, 0.0)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    write_mnist(tmp_path / "served", packed=True)
    return tmp_path / "served"


@pytest.fixture
def web(served: Path) -> Iterator[Web]:
    with Web(**{path.name: path.read_bytes() for path in served.iterdir()}) as web:
        yield web


@pytest.fixture
def before(served: Path) -> Callable[[int], None]:
    return partial(published, served)


def words(web: Web, *more: str) -> list[str]:
    return [f"data.source={{name: mnist, mirrors: ['{web.address}']}}", *more]


def names() -> list[str]:
    return [f"/{name}.gz" for name in MNIST_FILES]


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data").rglob("*") if path.is_file())


def test_four_commands_at_once_download_each_file_once(web: Web, before: Callable[[int], None], tmp_path: Path) -> None:
    def late(answer: Answer, content: bytes) -> None:
        until(lambda: said.count("waiting for another process that downloads into data/MNIST/raw") == 3, 60, lambda: said.all())
        well(answer, content)

    class Said:
        def all(self) -> str:
            return "\n".join(path.read_text() for path in tmp_path.glob("*/output.txt"))

        def count(self, words: str) -> int:
            return self.all().count(words)

    said = Said()
    web.ways[LARGEST] = [late]
    started = []
    for k in range(4):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "data").symlink_to(tmp_path / "data")
        (tmp_path / "data").mkdir(exist_ok=True)
        started += begin(tmp_path / str(k), ["prepare", *TINY, *words(web)], before=before)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * 4, said.all()
    assert sorted(web.asked) == sorted((name, None) for name in names())
    assert held(tmp_path) == sorted([".download.lock", *(name[1:] for name in names())])


def test_when_the_one_that_downloads_is_killed_the_next_goes_on_with_its_part(
    web: Web, before: Callable[[int], None], tmp_path: Path
) -> None:
    web.ways[LARGEST] = [stalls(100)]
    (tmp_path / "data").mkdir()
    started = []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "data").symlink_to(tmp_path / "data")
        started += begin(tmp_path / str(k), ["prepare", *TINY, *words(web)], before=before)
        output = tmp_path / str(k) / "output.txt"
        wanted = "waiting for another process" if k else "downloading"
        until(lambda: wanted in output.read_text() if output.exists() else False, 60, lambda: "not begun")  # noqa: B023
    part = tmp_path / "data/MNIST/raw" / f"{LARGEST[1:]}.part"
    started[0].kill()
    started[1].join(60)
    assert started[1].exitcode == 0
    assert not part.exists()
    assert web.asked[0] == (LARGEST, None)
    assert web.asked[1][0] == LARGEST


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)])
def test_a_run_that_waits_for_a_server_can_be_stopped_and_gone_on_with(
    web: Web, before: Callable[[int], None], run: Run, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    web.ways[LARGEST] = [stalls(100)]
    (process,) = begin(tmp_path, ["prepare", *TINY, *words(web)], before=before)
    part = tmp_path / "data/MNIST/raw" / f"{LARGEST[1:]}.part"
    until(lambda: part.exists() and bool(web.asked), 60, lambda: (tmp_path / "output.txt").read_text())
    assert process.pid
    os.kill(process.pid, number)
    process.join(25)
    assert process.exitcode == code
    assert (tmp_path / "output.txt").read_text().splitlines()[-1].endswith("run the same command again")
    assert run(*words(web), until="prepare", before=before).code == 0


def test_offline_one_is_told_which_files_to_put_where(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    ended = run(
        "data.source={name: mnist, mirrors: ['http://127.0.0.1:9']}", until="prepare", before=partial(published, tmp_path / "nothing")
    )
    assert ended.code == 3
    *_, last = ended.output.splitlines()
    assert last.startswith("pipeline: cannot download train-images-idx3-ubyte.gz (http://127.0.0.1:9/train-images-idx3-ubyte.gz: ")
    assert last.endswith(f"); put {', '.join(name[1:] for name in names())} into data/MNIST/raw by hand, or set data.root")


def test_what_is_not_as_it_was_published_is_refused_before_it_is_read(web: Web, run: Run, tmp_path: Path) -> None:
    ended = run(*words(web), until="train", processes=2)
    assert ended.codes == [3, 3], ended.output  # these are not the official files
    assert f"{LARGEST}: has " in ended.output
    assert web.asked == [(LARGEST, None)]
    assert held(tmp_path) == [".download.lock"]


def test_on_a_terminal_one_sees_how_far_it_is(web: Web, before: Callable[[int], None], tmp_path: Path) -> None:
    web.ways[LARGEST] = [stalls(100)]
    terminal = Terminal()
    (process,) = begin(tmp_path, ["prepare", *TINY, *words(web)], before=partial(both, terminal.before(), before), environment=NOT_CI)
    try:
        until(lambda: b"train-images-idx3-ubyte.gz \x1b[0m" in terminal.written, 60, lambda: terminal.written.decode())
    finally:
        web.leave.set()
        process.join(60)
        terminal.close()
    assert process.exitcode == 0
    assert not any("━" in line for line in terminal.shown())


def both(one: Callable[[int], None], other: Callable[[int], None], rank: int) -> None:
    one(rank)
    other(rank)


@pytest.mark.skipif(bool(mounts.refused_small()), reason=mounts.refused_small())
def test_a_full_disk_ends_in_a_line_and_the_same_command_goes_on_when_there_is_room(
    web: Web, before: Callable[[int], None], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with mounts.small(tmp_path / "data", 16):
        ended = run(*words(web), until="prepare", before=before)
        assert ended.code == 1, ended.output
        assert ended.output.splitlines()[-1].startswith("pipeline: No space left on device: data/MNIST/raw/")
    assert run(*words(web), until="prepare", before=before).code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to write everywhere")
def test_a_folder_that_may_not_be_written_to_ends_in_a_line(web: Web, before: Callable[[int], None], run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o555)
    ended = run(*words(web), until="prepare", before=partial(both, mounts.obeys, before))
    assert ended.code == 1
    assert ended.output.splitlines()[-1] == "pipeline: Permission denied: data/MNIST"
    assert web.asked == []
