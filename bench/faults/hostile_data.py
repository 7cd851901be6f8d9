"""Data sets made to harm: IDX and gzip, CIFAR-10's pickles and tars, folders of images, Parquet."""

import builtins
import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bench.faults.hostile import Case, Make, canary
from pipeline.data.classics import CIFAR10_FILES, MNIST_FILES

LABELS = np.arange(20, dtype=np.uint8) % 10
PREPARE = ("prepare", "data.root=data", "run.trackers=[]")
VICTIM = "t10k-labels-idx1-ubyte"
BATCH = {"data": np.zeros((20, 3072), np.uint8), "labels": LABELS.tolist()}


def head(*sizes: int, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, kind, len(sizes), *sizes)


def idx(content: Callable[[], bytes], name: str, work: Path) -> None:
    """MNIST, of which one file is `content`."""
    (work / "data").mkdir()
    for each in MNIST_FILES:
        images = "images" in each
        whole = head(20, 28, 28) + bytes(20 * 784) if images else head(20) + LABELS.tobytes()
        (work / "data" / each).write_bytes(content() if each == name else whole)


def sparse(path: Path, size: int = 1 << 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def sparse_idx(work: Path) -> None:
    idx(bytes, VICTIM, work)
    sparse(work / "data" / VICTIM)


def zeros(count: int, before: bytes = b"") -> bytes:
    """Gzipped, a thousandth of their number."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(before)
        for _ in range(count >> 20):
            file.write(bytes(1 << 20))
    return packed.getvalue()


WHOLE = gzip.compress(head(20) + LABELS.tobytes(), mtime=0)
IDX: dict[str, Callable[[], bytes]] = {
    "wrong magic": lambda: b"\1\0\x08\1" + bytes(24),
    "floats": lambda: head(20, kind=0x0D) + bytes(80),
    "no labels": lambda: head(0),
    "size -1": lambda: head(2**32 - 1) + bytes(20),
    "size 2^31": lambda: head(2**31) + bytes(20),
    "product 2^64": lambda: head(2**16, 2**16, 2**16, 2**16) + bytes(20),
    "product 2^128, which is 0 in 64 bits": lambda: head(*[2**32 - 1] * 4) + bytes(20),
    "255 dimensions": lambda: b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0",
    "head longer than the file": lambda: b"\0\0\x08\x03\0\0",
    "empty": bytes,
    "trailing bytes": lambda: head(20) + LABELS.tobytes() + b"more",
    "label out of range": lambda: head(20) + bytes([200] * 20),
    "other count": lambda: head(19) + bytes(19),
    "images in place of labels": lambda: head(20, 28, 28) + bytes(20 * 784),
    "gzip bomb of 1 GB": lambda: zeros(1 << 30, head(20)),
    "gzip bomb of 1 GB that says so": lambda: zeros(1 << 30, head(1 << 30)),
    "two gzip members": lambda: WHOLE + WHOLE,
    "gzip, bad checksum": lambda: WHOLE[:-8] + b"abcd" + WHOLE[-4:],
    "gzip, cut": lambda: WHOLE[:-9],
    "gzip, head alone": lambda: b"\x1f\x8b",
    "a pickle": lambda: pickle.dumps([1]),
}


def reduce(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls `module.name(argument)`."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def touch(path: Path) -> str:
    return f"open('{path}', 'w')"


def nested(count: int) -> bytes:
    """A tuple that holds itself twice, so many deep, as a key: its hash takes 2^count steps."""
    return b")\x94" + b"".join(b"h%c" % k * 2 + b"\x86\x94" for k in range(count)) + b"}h%cNs." % count


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda ran: reduce("os", "system", f"touch {ran}"),
    "posix.system": lambda ran: reduce("posix", "system", f"touch {ran}"),
    "builtins.exec": lambda ran: reduce("builtins", "exec", touch(ran)),
    "__builtin__.eval, as Python 2 called it": lambda ran: reduce("__builtin__", "eval", touch(ran)),
    "numpy's runstring": lambda ran: reduce("numpy.testing._private.utils", "runstring", touch(ran)),
    "subprocess.Popen": lambda ran: reduce("subprocess", "Popen", "hostile"),
    "INST": lambda ran: b"(V" + f"touch {ran}".encode() + b"\nios\nsystem\n.",
    "OBJ": lambda ran: b"(cos\nsystem\nV" + f"touch {ran}".encode() + b"\no.",
    "STACK_GLOBAL": lambda ran: (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(f"touch {ran}")]) + f"touch {ran}".encode() + b"\x85R."
    ),
    "reduce of a method": lambda ran: pickle.dumps({"data": _Touch(ran)}),
    "in the labels": lambda ran: pickle.dumps({**BATCH, "labels": [_Touch(ran)]}),
    "a name with dots": lambda ran: b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.",
    "EXT1": lambda ran: b"\x82\x01.",
    "persistent id": lambda ran: b"Pevil\n.",
    "an array of objects": lambda ran: pickle.dumps({**BATCH, "data": np.array([[{}] * 3072], object)}),
    "an array's state that calls": lambda ran: b"cnumpy\nndarray\ncos\nsystem\nb.",
    "a memo of 2^31": lambda ran: b"Nr\xff\xff\xff\x7f.",
    "a memo of 2^28, alive": lambda ran: b"]r\x00\x00\x00\x10.",
    "a million lists in each other": lambda ran: b"]" * 500_000 + b"a" * 499_999 + b".",
    "a hash of 2^60 steps": lambda ran: nested(60),
    "lists of ten lists, forty deep": lambda ran: b"]\x94" + b"".join(b"](" + b"h%c" % k * 10 + b"e\x94" for k in range(40)) + b".",
    "bytearray(8 GB)": lambda ran: b"cbuiltins\nbytearray\n(L8000000000L\ntR.",
    "bytes that say 2^62": lambda ran: b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a number of 10^5 digits": lambda ran: b"I" + b"9" * 100_000 + b"\n.",
    "a number of 10^400": lambda ran: pickle.dumps({**BATCH, "labels": [10**400] * 20}),
    "labels out of range": lambda ran: pickle.dumps({**BATCH, "labels": [-1] * 20}),
    "fewer labels": lambda ran: pickle.dumps({**BATCH, "labels": [1]}),
    "an array that says it is of 3 TB": lambda ran: pickle.dumps(BATCH, protocol=2).replace(b"K\x14M\x00\x0c", b"J\xff\xff\xff?M\x00\x0c"),
    "cut": lambda ran: pickle.dumps(BATCH)[:-20],
    "a .npy of objects": lambda ran: _npy(_Touch(ran)),
}


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return builtins.exec, (touch(self.path),)


def _npy(value: object) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([value], object), allow_pickle=True)
    return content.getvalue()


def batches(content: Callable[[Path], bytes], work: Path) -> None:
    """CIFAR-10, of which one batch is `content`."""
    place = work / "data" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name in CIFAR10_FILES:
        (place / name).write_bytes(content(canary(work)) if name == "data_batch_3" else pickle.dumps(BATCH))


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def tar(victims: Callable[[Path], list[Member]], work: Path) -> None:
    """CIFAR-10 as a tar, with `victims` in place of one batch."""
    (work / "data").mkdir()
    with tarfile.open(work / "data" / "cifar-10-python.tar.gz", "w:gz", compresslevel=1) as file:
        for info, content in victims(work):
            file.addfile(info, io.BytesIO(content))
        for name in CIFAR10_FILES:
            if name != "data_batch_3":
                info, content = member(f"cifar-10-batches-py/{name}", pickle.dumps(BATCH))
                file.addfile(info, io.BytesIO(content))


def raw_tar(content: Callable[[Path], bytes], work: Path) -> None:
    (work / "data").mkdir()
    (work / "data" / "cifar-10-python.tar.gz").write_bytes(content(canary(work)))


B3 = "cifar-10-batches-py/data_batch_3"
GOOD = pickle.dumps(BATCH)
TARS: dict[str, Callable[[Path], list[Member]]] = {
    "../": lambda work: [member("../../written", b"x"), member("../secret", b"changed")],
    "an absolute path": lambda work: [member(str(work.parent / "secret"), b"changed")],
    "a link in place of a batch": lambda work: [member(B3, kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "a hard link in place of a batch": lambda work: [member(B3, kind=tarfile.LNKTYPE, link="/etc/passwd")],
    "a link, and a file behind it": lambda work: [member("d", kind=tarfile.SYMTYPE, link=".."), member("d/written", b"x")],
    "a device": lambda work: [member(B3, kind=tarfile.CHRTYPE)],
    "a pipe": lambda work: [member(B3, kind=tarfile.FIFOTYPE)],
    "a batch twice": lambda work: [member(B3, GOOD), member(B3, reduce("os", "system", f"touch {canary(work)}"))],
    "a pickle that calls": lambda work: [member(B3, reduce("os", "system", f"touch {canary(work)}"))],
    "a name with a line break": lambda work: [member("\x1b[2J\nx", b"x")],
}


def longname(size: int) -> bytes:
    """The header of a name that is so long."""
    return tarfile.TarInfo("././@LongLink").create_ustar_header(
        {**tarfile.TarInfo("././@LongLink").get_info(), "size": size, "type": tarfile.GNUTYPE_LONGNAME}, "utf-8", "strict"
    )


RAW_TARS: dict[str, Callable[[Path], bytes]] = {
    "gzip bomb of 1 GB": lambda ran: zeros(1 << 30, longname(1 << 30)),
    "a member of 8 EB": lambda ran: gzip.compress(
        tarfile.TarInfo(B3).create_gnu_header({**tarfile.TarInfo(B3).get_info(), "size": 2**62}, "utf-8", "strict") + bytes(1024)
    ),
    "ten thousand headers in each other": lambda ran: gzip.compress((longname(1) + b"x".ljust(512, b"\0")) * 10_000),
    "no tar": lambda ran: b"<html>not found</html>",
    "cut": lambda ran: zlib.compress(b"x"),
    "a zip": lambda ran: b"PK\x03\x04" + bytes(100),
}


def png(width: int, height: int, chunk: bytes = b"") -> bytes:
    """One that says that it is so large, with nothing in it."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk + part(b"IDAT", zlib.compress(bytes(100))) + part(b"IEND", b"")


def image(kind: str = "PNG", mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, (8, 8), 3).save(content, kind)
    return content.getvalue()


def folder(content: Callable[[Path], bytes], name: str, work: Path) -> None:
    """Two classes of good images, and `content` among them."""
    for place in ("a", "b"):
        (work / "data" / place).mkdir(parents=True)
        for k in range(12):
            (work / "data" / place / f"{k}.png").write_bytes(image())
    target = work / "data" / "a" / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content(work))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
IMAGES: dict[str, tuple[str, Callable[[Path], bytes], int, str]] = {
    "PNG of 65535^2": ("x.png", lambda work: png(65535, 65535), 3, "a/x.png"),
    "PNG of 12000^2": ("x.png", lambda work: png(12000, 12000), 3, "a/x.png"),
    "PNG of no size": ("x.png", lambda work: png(0, 8), 3, "a/x.png"),
    "PNG, cut": ("x.png", lambda work: image()[:-30], 3, "a/x.png"),
    "PNG with a text of 1 GB": ("x.png", lambda work: png(8, 8, _ztxt()), 3, "a/x.png"),
    "PNG that is a zip, too": ("x.png", lambda work: image() + b"PK\x03\x04" + bytes(50), 0, "done in"),
    "PostScript called PNG": (
        "x.png",
        lambda work: POSTSCRIPT,
        3,
        "a/x.png",
    ),
    "PostScript": ("x.eps", lambda work: POSTSCRIPT, 3, "a/x.eps"),
    "SVG called PNG": ("x.png", lambda work: b"<svg onload='x'/>", 3, "a/x.png"),
    "a pickle called PNG": ("x.png", lambda work: reduce("os", "system", f"touch {canary(work)}"), 3, "a/x.png"),
    "32-bit pixels": ("x.tiff", lambda work: image("TIFF", "F"), 3, "a/x.tiff"),
    "TIFF whose directory is its own next": ("x.tiff", lambda work: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", 3, "a/x.tiff"),
    "a name with a line break": ("a\npipeline: done.png", lambda work: b"x", 3, r"a\npipeline: done.png"),
    "a name that clears the screen": ("\x1b[2J.png", lambda work: b"x", 3, r"\x1b[2J.png"),
    "a name that is not UTF-8": ("\udcff.png", lambda work: b"x", 3, r"\udcff.png"),
    "a name that is an option": ("-rf.png", lambda work: b"x", 3, "a/-rf.png"),
    "a name that a shell would run": ("$(touch ran);`id`.png", lambda work: b"x", 3, "$(touch ran);`id`.png"),
    "a class that is not UTF-8": ("../\udcfe/x.png", lambda work: image(), 3, r"\udcfe"),
    "a class with a line break": ("../c\n\x1b[2J/x.png", lambda work: b"x", 3, r"c\n\x1b[2J/x.png"),
}


def _ztxt() -> bytes:
    content = b"k\0\0" + zlib.compress(bytes(1 << 28), 1)
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


def strange(kind: str, work: Path) -> None:
    """A folder of classes in which no image is a regular file."""
    place = work / "data" / "a"
    place.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place / "x.png")
    elif kind == "device":
        (place / "x.png").symlink_to("/dev/zero")
    else:
        (place / "x.png").symlink_to("x.png")
        (place / "loop").symlink_to(".")


def huge_image(work: Path) -> None:
    folder(lambda _: b"", "x.png", work)
    sparse(work / "data" / "a" / "x.png")


def parquet(kind: str, work: Path) -> None:
    import datasets

    (work / "data").mkdir()
    for split in ("train", "test"):
        path = work / "data" / f"{split}.{'arrow' if kind == 'arrow junk' else 'parquet'}"
        if kind == "a path outside":
            rows = {"image": [{"bytes": None, "path": str(work.parent / "secret")}] * 4, "label": [0, 1] * 2}
            features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])})
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        else:
            path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")


def _data(reader: str, source: str, name: str, make: Make, told: str, code: int = 3) -> Case:
    return Case(name, reader, make, (*PREPARE, f"data.source={source}"), code, told)


CASES = [
    *(_data("IDX", "mnist", name, partial(idx, content, VICTIM), VICTIM) for name, content in IDX.items()),
    _data("IDX", "mnist", "a sparse terabyte", sparse_idx, VICTIM),
    *(_data("CIFAR-10, pickle", "cifar10", name, partial(batches, content), "data_batch_3") for name, content in PICKLES.items()),
    *(
        _data("CIFAR-10, tar", "cifar10", name, partial(tar, victims), "data_batch_3" if name != "a batch twice" else "data_batch_3 twice")
        for name, victims in TARS.items()
    ),
    *(_data("CIFAR-10, tar", "cifar10", name, partial(raw_tar, content), "cifar-10-python.tar.gz") for name, content in RAW_TARS.items()),
    *(_data("images", "folder", name, partial(folder, content, file), told, code) for name, (file, content, code, told) in IMAGES.items()),
    *(_data("images", "folder", f"a {kind}", partial(strange, kind), "no images in data") for kind in ("pipe", "device", "loop of links")),
    _data("images", "folder", "a sparse terabyte", huge_image, "a/x.png"),
    _data("Parquet, Arrow", "huggingface", "parquet junk", partial(parquet, "parquet junk"), "data/train.parquet"),
    _data("Parquet, Arrow", "huggingface", "arrow junk", partial(parquet, "arrow junk"), "data/train.arrow"),
    _data("Parquet, Arrow", "huggingface", "a path outside", partial(parquet, "a path outside"), "secret"),
]
