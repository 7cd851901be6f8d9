"""Sources read what their authors published, execute nothing from it, and say what is odd."""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from pipeline.data import formats
from pipeline.data.classics import CIFAR10_FILES, MNIST_FILES
from pipeline.data.datasets import DATASETS
from pipeline.data.images import pixels
from pipeline.data.raw import RawDataset
from pipeline.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 3, 32, 32), np.uint8)
LABELS = np.arange(20) % 10


def load(name: str, root: Path, **options: object) -> RawDataset:
    return DATASETS[name](root, **options).load()


def identity(name: str, root: Path, **options: object) -> object:
    return DATASETS[name](root, **options).identity


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, packed: bool) -> None:
    folder.mkdir(parents=True)
    for name in MNIST_FILES:
        content = idx(IMAGES[:, 0, :28, :28].copy() if "images" in name else LABELS.astype(np.uint8))
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["MNIST/raw", "."])
def test_mnist_is_read_from_idx(tmp_path: Path, packed: bool, below: str) -> None:
    write_mnist(tmp_path / "data" / below, packed=packed)
    raw = load("mnist", tmp_path / "data")
    np.testing.assert_array_equal(np.asarray(raw.train.images), IMAGES[:, :1, :28, :28])
    np.testing.assert_array_equal(raw.test.labels, LABELS)
    assert raw.notes == [f"not the official files, by their checksums: {', '.join(MNIST_FILES)}"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (idx(LABELS.astype(np.uint8))[:-3], "holds 17 bytes, but its head says"),
        (b"\x1f\x8b\x08broken", "is not a whole gzip file"),
        (gzip.compress(idx(LABELS.astype(np.uint8)), mtime=0)[:-9], "is not a whole gzip file"),
        (b"<html>not found</html>", "is not an IDX file"),
        (b"", "is not an IDX file"),
        (b"\0\0\x08\xff", "but its head says"),
    ],
)
def test_a_broken_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, told: str) -> None:
    write_mnist(tmp_path / "data", packed=False)
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        load("mnist", tmp_path / "data")
    assert "t10k-labels-idx1-ubyte" in str(error.value)


def cifar_files(suffix: str = "") -> dict[str, bytes]:
    if suffix:
        record = np.concatenate([LABELS.astype(np.uint8)[:, None], IMAGES.reshape(20, -1)], 1).tobytes()
        return dict.fromkeys([name + suffix for name in CIFAR10_FILES], record)
    batch = pickle.dumps({"data": IMAGES.reshape(20, -1), "labels": LABELS.tolist()}, protocol=2)
    return dict.fromkeys(CIFAR10_FILES, batch)


@pytest.mark.parametrize("form", ["python", "binary", "python tar", "binary tar"])
def test_cifar10_is_read_from_each_of_its_forms(tmp_path: Path, form: str) -> None:
    files = cifar_files(".bin" if "binary" in form else "")
    folder = "cifar-10-batches-bin" if "binary" in form else "cifar-10-batches-py"
    if "tar" in form:
        with tarfile.open(tmp_path / f"cifar-10-{form.split()[0]}.tar.gz", "w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name).write_bytes(content)
    raw = load("cifar10", tmp_path)
    assert len(raw.train.labels) == 100
    np.testing.assert_array_equal(np.asarray(raw.test.images), IMAGES)
    np.testing.assert_array_equal(raw.test.labels, LABELS)
    assert raw.notes[0].startswith("not the official files, by their checksums")


def test_absent_and_official_files_have_one_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "data", packed=True)
    assert identity("mnist", tmp_path / "nothing") != identity("mnist", tmp_path / "data")
    from pipeline.data.download import file_md5

    for name in MNIST_FILES:  # as if these were the official ones
        monkeypatch.setitem(MNIST_FILES, name, (file_md5(tmp_path / "data" / f"{name}.gz"), ""))
    assert identity("mnist", tmp_path / "nothing") == identity("mnist", tmp_path / "data")
    assert load("mnist", tmp_path / "data").notes == []


def test_the_official_binary_tar_is_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.data.classics import CIFAR10_TARS
    from pipeline.data.download import file_md5

    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in cifar_files(".bin").items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert load("cifar10", tmp_path).notes != []
    monkeypatch.setitem(CIFAR10_TARS, path.name, file_md5(path))  # as if this were it
    assert load("cifar10", tmp_path).notes == []


class Trap:
    """A pickle of this would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_wants_to_run_something_is_refused_and_not_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1 is not .*: it asks for .*; nothing of it was executed"):
        formats.read_cifar_pickle(pickle.dumps({"data": Trap(tmp_path / "ran")}), "data_batch_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02junk", pickle.dumps([1, 2]), pickle.dumps({"data": 3, "labels": []})])
def test_what_is_no_cifar_batch_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in CIFAR10_FILES:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1"):
        load("cifar10", tmp_path)


def write_image(path: Path, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, 77).save(path)


def test_a_folder_of_class_folders_is_read_in_order(tmp_path: Path) -> None:
    for name in ("train/cat/2.png", "train/cat/1.jpg", "train/dog/x.webp", "test/dog/y.gif"):
        write_image(tmp_path / name)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/.hidden.png").write_text("not one either")
    raw = load("folder", tmp_path)
    assert raw.classes == ["cat", "dog"]
    assert [Path(str(p)).name for p in raw.train.images] == ["1.jpg", "2.png", "x.webp"]
    assert (raw.train.labels.tolist(), raw.test.labels.tolist()) == ([0, 0, 1], [1])


def test_a_folder_without_a_test_part_sets_every_fifth_image_aside(tmp_path: Path) -> None:
    for k in range(10):
        write_image(tmp_path / "cat" / f"{k}.png")
        write_image(tmp_path / "dog" / f"{k}.png")
    raw = load("folder", tmp_path)
    assert (len(raw.train.labels), raw.test.labels.tolist()) == (16, [0, 0, 1, 1])
    assert "every fifth image" in raw.notes[0]


def test_a_data_set_of_the_hub_is_asked_for_by_name_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no Parquet or Arrow files in {tmp_path}/gone; set .* or a name on the Hub"):
        load("huggingface", tmp_path / "gone")


def test_a_folder_with_nothing_in_it_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*; expected .*/train/<class>/<image>, or .*; is data\.root right"):
        load("folder", tmp_path)
    with pytest.raises(DataError, match=r"/gone is not there; give the folder of the images, as --data-dir or data\.root"):
        load("folder", tmp_path / "gone")
    write_image(tmp_path / "loose.png")
    with pytest.raises(DataError, match=rf"{tmp_path} has images \(1\), but none in a folder for its class; move each into"):
        load("folder", tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_and_size_becomes_bytes_of_one_shape(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / f"x.{'tiff' if mode == 'CMYK' else 'png'}"
    PIL.Image.new(mode, (33, 21)).save(path)
    assert pixels(path, channels, (16, 16)).shape == (channels, 16, 16)


def test_images_are_turned_as_their_camera_was(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png", 1, (4, 4))[0], np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the image .*x\.png"):
        pixels(tmp_path / "x.png", 1, (4, 4))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_local_hugging_face_files_are_read(tmp_path: Path, form: str) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    pictures = [PIL.Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES]
    made = datasets.Dataset.from_dict({"img": pictures, "label": (LABELS % 2).tolist()}, features=features)
    for split in ("train", "test"):
        if form == "parquet":
            made.to_parquet(tmp_path / f"{split}-00000.parquet")
        else:
            made.save_to_disk(tmp_path / split)
    raw = load("huggingface", tmp_path)
    assert raw.classes == ["b", "a"]
    np.testing.assert_array_equal(raw.train.labels, LABELS % 2)
    np.testing.assert_array_equal(np.stack([pixels(raw.test.images[k], 3, None) for k in range(20)]), IMAGES)


@pytest.mark.parametrize("wrong", ["float", "last", "names"])
def test_hugging_face_data_that_could_be_read_wrongly_are_refused(tmp_path: Path, wrong: str) -> None:
    import datasets

    values = IMAGES[:, :, :8, :8].tolist()
    if wrong == "float":
        values = (IMAGES[:, :, :8, :8] / 255).tolist()
    if wrong == "last":
        values = IMAGES[:, :, :8, :8].transpose(0, 2, 3, 1).tolist()
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"] if wrong == "names" else ["a", "b"])):
        made = datasets.Dataset.from_dict({"image": values, "label": (LABELS % 2).tolist()})
        made.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="number their classes differently" if wrong == "names" else "holds neither images nor"):
        _ = load("huggingface", tmp_path).train.images[0]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    PIL.Image.new(mode, (4, 4)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff has 32-bit pixels"):
        pixels(tmp_path / "x.tiff", 1, (4, 4))


def test_digits_are_those_of_scikit_learn() -> None:
    raw = load("digits", Path(), size=8)
    from sklearn.datasets import load_digits

    assert len(raw.train.labels) + len(raw.test.labels) == 1797
    np.testing.assert_array_equal(np.asarray(raw.train.images)[0, 0], np.rint(load_digits().images[0] * 255 / 16))


@pytest.mark.parametrize("width", [9000, 12000, 24000])
def test_an_image_that_is_too_large_is_to_be_scaled_down(width: int) -> None:
    PIL.Image.new("1", (width, 9000)).save(written := io.BytesIO(), "PNG")
    with pytest.raises(DataError, match=r"the image photo .* more than 67,108,864 pixels; scale it down"):
        pixels(written.getvalue(), 3, (8, 8), "photo")
