"""A data set of the Hub: resumed, checked by digest before it is read, and nothing in its repository executed."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow
import pytest
from conftest import Run
from hub_data import COMMIT, Hub
from processes import Ended
from web import Answer, Way, cut, refuses, stalls, well, whole

TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
SOURCE = "data.source={name: huggingface, path: me/pictures}"


def parquet(count: int, seed: int) -> bytes:
    """Images of two classes, as the Hub has such."""
    import datasets

    drawn = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [PIL.Image.fromarray(image) for image in drawn], "label": [k % 2 for k in range(count)]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(written := io.BytesIO())
    return written.getvalue()


FILES = {"README.md": b"---\nlicense: mit\n---\n", TRAIN: parquet(40, 0), TEST: parquet(10, 1)}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(FILES) as hub:
        yield hub


Prepare = Callable[[], Ended]


def anew(_: int) -> None:
    """`before` of `begin`: the libraries look at their environment once, when they are imported, as they have been."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "datasets")]:
        del sys.modules[name]
    for dimensions in range(2, 6):  # which are registered when `datasets` is imported
        with contextlib.suppress(KeyError):
            pyarrow.unregister_extension_type(f"datasets.features.features.Array{dimensions}DExtensionType")
    from pipeline.data import download

    download.PAUSES = (0.0, 0.0)


@pytest.fixture
def prepare(run: Run, hub: Hub, tmp_path: Path) -> Prepare:
    environment = {**hub.environment, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    return partial(run, SOURCE, until="prepare", environment=environment, before=anew)


def read(hub: Hub, name: str) -> list[str | None]:
    """The ranges of a file that were sent."""
    return [wanted for path, wanted in hub.asked if path == f"GET /datasets/me/pictures/resolve/{COMMIT}/{name}"]


def last(ended: Ended) -> str:
    return ended.output.splitlines()[-1]


def test_a_data_set_is_read_by_its_name_and_downloaded_once(hub: Hub, prepare: Prepare) -> None:
    ended = prepare()
    assert ended.code == 0, ended.output
    assert "downloading me/pictures at cccccccccccc: 2 files, " in ended.output
    assert "prepare: 36 train, 4 validation, 10 test; 2 classes; images 1x8x8" in ended.output
    assert (read(hub, TRAIN), read(hub, TEST)) == ([None], [None])


@pytest.mark.soak
@pytest.mark.parametrize("way", [cut(1000), stalls(1000)])
def test_a_file_that_is_cut_or_stalls_is_asked_for_again(hub: Hub, prepare: Prepare, way: Way) -> None:
    hub.ways[f"/{TRAIN}"] = [way]
    assert prepare().code == 0
    assert len(read(hub, TRAIN)) == 2  # less than a block of the library's is not kept


def altered(answer: Answer, content: bytes) -> None:
    well(answer, content[:500] + bytes([content[500] ^ 1]) + content[501:])


def short(answer: Answer, content: bytes) -> None:
    whole(answer, content[:-1])


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (altered, "is not what the Hub says it is, by its digest; delete "),
        pytest.param(short, "Consistency check", marks=pytest.mark.soak),
    ],
)
def test_a_file_that_is_another_one_is_not_read(hub: Hub, prepare: Prepare, way: Way, said: str) -> None:
    hub.ways[f"/{TRAIN}"] = [way]
    ended = prepare()
    assert ended.code == 3, ended.output
    assert said in last(ended)
    if way is altered:
        Path(last(ended).rpartition("delete ")[2].removesuffix(" and run again")).unlink()
    assert prepare().code == 0


@pytest.mark.soak
def test_a_hub_in_passing_trouble_is_asked_again_and_no_more_than_twice(hub: Hub, prepare: Prepare) -> None:
    hub.ways[f"/{TRAIN}"] = [refuses(503)] * 3
    ended = prepare()
    assert ended.code == 3
    assert "503" in last(ended)
    hub.ways[f"/{TRAIN}"] = [refuses(503)] * 2
    assert prepare().code == 0
    assert len(read(hub, TRAIN)) == 6


def test_a_repository_with_a_loading_script_is_refused_and_the_script_not_executed(hub: Hub, prepare: Prepare, tmp_path: Path) -> None:
    hub.held["pictures.py"] = f"open({str(tmp_path / 'harm')!r}, 'w')".encode()
    ended = prepare()
    assert ended.code == 3
    assert last(ended).startswith("pipeline: cannot load 'me/pictures' from the Hub, splits train and test: Dataset scripts are no longer ")
    assert not (tmp_path / "harm").exists()


@pytest.mark.soak
def test_data_that_a_repository_has_elsewhere_are_not_read(hub: Hub, prepare: Prepare) -> None:
    hub.held["README.md"] = f"---\nconfigs:\n- config_name: default\n  data_files: {hub.address}/x.parquet\n---\n".encode()
    hub.files["/x.parquet"] = FILES[TRAIN]
    assert prepare().code == 3
    assert not [path for path, _ in hub.asked if "x.parquet" in path]


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", pytest.param("HF_HUB_DISABLE_XET", marks=pytest.mark.soak)])  # which asks 5 times
def test_offline_one_is_told_how_to_get_the_files_and_where_to_name_them(hub: Hub, run: Run, tmp_path: Path, way: str) -> None:
    hub.server_close()
    ended = run(SOURCE, until="prepare", environment={**hub.environment, "HF_HOME": str(tmp_path), way: "1"}, before=anew)
    assert ended.code == 3
    assert last(ended).endswith(
        "`hf download me/pictures --repo-type dataset --local-dir FOLDER` fetches the files: set data.source.path to their folder"
    )
