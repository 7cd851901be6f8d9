"""Files that are whole or absent: written aside, synced, renamed, and listed with their digests.

A folder is whole when its `manifest.json`, written last, lists every file with its size and
digests, and all of them agree. So does the manifest with the digest of itself that it holds.

Of a file there are two: sha256, which names its content, and XXH3 (128 bits, Y. Collet), ten times as fast, by which it is
checked before each use. That notices accidents as surely; neither is a guard against intent, for who can change a file can
change the manifest beside it.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from xxhash import xxh3_128

from pipeline.reading import LARGEST, opened, read

MANIFEST = "manifest.json"
THREADS = 16  # which mostly wait for the disk
TROUBLES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE)  # of a disk, whatever is done to it

Outputs = dict[str, dict[str, Any]]  # path in the folder -> {"size": bytes, "sha256": hex, "xxh3_128": hex}; older ones lack the last
BLOCK = 1 << 18  # bytes that are read at once


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Have an error of the disk name `path`, where what was called knows but a descriptor."""
    try:
        yield
    except OSError as error:
        if error.errno in TROUBLES and error.filename is None:
            error.filename = str(path)
        raise


def write_whole(path: Path, content: bytes | str, aside: Path | None = None) -> None:
    """Replace `path` with `content`; a reader, or a crash, sees the old file or the new one.

    It is written in the folder `aside` first, which is that of `path` if not given.
    """
    partial = (aside or path.parent) / f".{path.name}.{os.getpid()}.partial"
    try:
        with named(path), partial.open("wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any, aside: Path | None = None) -> None:
    write_whole(path, _json(value), aside)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def read_json(path: Path, most: int = LARGEST) -> Any:
    """The value in `path`, or None if the file is absent, is not JSON, or has more than `most` bytes."""
    try:
        return json.loads(read(path, most))
    except (OSError, ValueError, RecursionError):
        return None


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the manifest of `folder`, with a digest of `values` as they will be read."""
    write_whole(folder / MANIFEST, _manifest(values))


def read_manifest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The values of the manifest in `folder`, or None; and what is wrong with it: nothing, if it is but absent."""
    content = b""
    try:
        content = read(folder / MANIFEST)
        values = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except OSError as error:
        return None, f"{MANIFEST}: {error.strerror}"
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and not values.keys() & {"sha256", "outputs"}:  # somebody else's
        return None, ""
    as_written = _json(values).encode() == content  # white space, too, which would say that something is wrong with the disk
    if not isinstance(values, dict) or values.pop("sha256", "") != _digest(values) or not as_written:
        return None, f"{MANIFEST} has changed"
    if not _is_listing(values.get("outputs")):
        return None, f"{MANIFEST} lists what is no file of the folder"
    return values, ""


def _is_listing(outputs: Any) -> bool:
    """Whether it is one of `Outputs`, of files that are in the folder or below."""
    return isinstance(outputs, dict) and all(
        isinstance(listed, dict)
        and type(listed.get("size")) is int
        and isinstance(listed.get("sha256"), str)
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
        for name, listed in outputs.items()
    )


def _manifest(values: Mapping[str, Any]) -> str:
    values = json.loads(json.dumps(values))  # as they will be read
    return _json({**values, "sha256": _digest(values)})


def _digest(values: Any) -> str:
    """sha256 of canonical JSON; a loss that is no number may be among the values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sync(path: Path) -> None:
    """Make what is in a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder`, and what is missing above it; a synced file in a folder whose name is lost is lost as well."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def seal(folder: Path, paths: Iterable[str]) -> Outputs:
    """Sync the files `paths` of `folder` to the disk; their sizes and digests."""
    names = sorted(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        syncs = [pool.submit(sync, path) for path in (*(folder / name for name in names), *_folders(folder, names))]
        outputs = _outputs(folder, names, pool)
        _all(syncs)
    return outputs


def _outputs(folder: Path, names: Sequence[str], pool: Executor) -> Outputs:
    def one(name: str) -> dict[str, Any]:
        with (folder / name).open("rb") as f:
            content, check = hashlib.sha256(), xxh3_128()
            while block := f.read(BLOCK):
                content.update(block)
                check.update(block)
            return {"sha256": content.hexdigest(), "size": f.tell(), "xxh3_128": check.hexdigest()}

    return dict(zip(names, pool.map(one, names), strict=True))


def _folders(folder: Path, names: Iterable[str]) -> set[Path]:
    return {(folder / name).parent for name in names} | {folder}


def _all(jobs: Iterable[Future[None]]) -> None:
    for job in jobs:
        job.result()


def damage(folder: Path, outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """The first file of `folder` that is not as `outputs` says, and how; empty if all are."""

    def check(name: str) -> str:
        try:
            with opened(folder / name) as f:
                if os.fstat(f.fileno()).st_size != outputs[name]["size"]:
                    return f"{name} has the wrong size"
                if not _is_as_listed(f, outputs[name]):
                    return f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
        return ""

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return next(filter(None, pool.map(check, outputs)), "")


def _is_as_listed(file: BufferedReader, listed: Mapping[str, Any]) -> bool:
    if "xxh3_128" in listed:
        return hashlib.file_digest(file, xxh3_128).hexdigest() == str(listed["xxh3_128"])
    return hashlib.file_digest(file, "sha256").hexdigest() == str(listed["sha256"])


def begins_with(path: Path, start: Any) -> bool:
    """Whether the first `size` bytes of `path` have the digest that `start` says, {"size": bytes, "sha256": hex}."""
    if not _is_listing({path.name: start}) or start["size"] < 0:
        return False
    try:
        with opened(path) as f:
            content = f.read(min(start["size"], os.fstat(f.fileno()).st_size))
    except OSError:
        content = b""
    return len(content) == start["size"] and bool(hashlib.sha256(content).hexdigest() == start["sha256"])


def commit_folder(partial: Path, final: Path, values: Mapping[str, Any], also: Callable[[], None] = lambda: None) -> None:
    """Give the folder `partial` its manifest, of `values` and its files, and then, when all is on the disk, the name `final`.

    The disk is asked for everything at once, `also` for what the folder relies on: it does several
    syncs in little more than the time of one.
    """
    names = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
    with ThreadPoolExecutor(THREADS) as pool:
        syncs = [pool.submit(also), *(pool.submit(sync, partial / name) for name in names)]
        (partial / MANIFEST).write_text(_manifest({**values, "outputs": _outputs(partial, names, pool)}))
        syncs += [pool.submit(sync, path) for path in (partial / MANIFEST, *_folders(partial, names))]
        _all(syncs)
    remove(final)
    partial.rename(final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Delete a folder; if that is cut short, no part of it can be taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
