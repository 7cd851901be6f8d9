"""Files from the web: resumed, checked by size and sha256, and there only when whole.

A part is good for every mirror, and after any time, since the digest of the whole is known beforehand: so no validator (If-Range) is
kept beside it. One that came of another file costs a try: the whole is then not the one expected, and is fetched from its beginning.
"""

import contextlib
import email.utils
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import DataError
from pipeline.runtime import files
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.progress import Progress

SILENCE = 30.0  # seconds without a byte
SPELL, SLOWEST = 60.0, 10_000  # seconds, and bytes a second that must have come in each such spell
PAUSES = (1.0, 5.0)  # seconds between two rounds of the mirrors; one round more than there are pauses
LONGEST = 60.0  # seconds of a pause, whatever a server asks for
PASSING = (408, 425, 429, *range(500, 600))  # codes of an answer that may be another one soon
BLOCK = 1 << 18  # bytes


@dataclass(frozen=True)
class Published:
    """A file as its authors published it."""

    size: int  # bytes
    sha256: str


class _Failed(Exception):
    """One try at one mirror, which is to be left alone for `pause` seconds; None: for good."""

    def __init__(self, why: str, pause: float | None = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


def download(folder: Path, wanted: Mapping[str, Published], mirrors: Sequence[str]) -> None:
    """Fetch those files `wanted` that `folder` lacks, each from the first of `mirrors` that has it; a part is kept and resumed.

    Raises:
        DataError: one could not be had; the message says which files to put where.
        OSError: of the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        for name, published in wanted.items():
            if not (folder / name).exists() and (failures := _from_any(mirrors, folder / name, published)):
                lacking = ", ".join(n for n in wanted if not (folder / n).exists())
                reasons = "; ".join(dict.fromkeys(failures))
                raise DataError(f"cannot download {name} ({reasons}); put {lacking} into {folder} by hand, or set data.root")


def file_md5(path: Path) -> str:
    """md5, because that is what the data sets' authors publish; it tells copies apart, no more."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of the processes that see this folder one downloads at a time; the kernel frees the lock of one that is killed."""
    lock = FileLock(folder / ".download.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"waiting for another process that downloads into {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _from_any(mirrors: Sequence[str], path: Path, published: Published) -> list[str]:
    """Why no mirror gave `path`; empty if one did."""
    failures: list[str] = []
    left = dict.fromkeys((f"{mirror.rstrip('/')}/{path.name}" for mirror in mirrors), 0.0)  # and how long each is to be left alone
    for pause in (0.0, *PAUSES):
        time.sleep(min(LONGEST, max(pause, *left.values())))
        for url in list(left):
            try:
                _try(url, path, published)
                return []
            except _Failed as failed:
                failures.append(f"{url}: {failed}")
                if failed.pause is None:
                    del left[url]
                else:
                    left[url] = failed.pause
        if not left:
            break
    return failures or ["no mirrors"]


def _try(url: str, path: Path, published: Published) -> None:
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    if have > published.size:
        have = 0
    if have < published.size:
        have = _fetch(url, part, have, published.size)
    if _sha256(part) != published.sha256:
        part.unlink()
        raise _Failed("the file is not the one expected", 0.0 if have else None)  # what was there before may be to blame
    files.sync(part)
    part.replace(path)
    files.sync(path.parent)


def _fetch(url: str, part: Path, have: int, size: int) -> int:
    """Have all `size` bytes in `part`, of which the first `have` are there; how many of those were kept."""
    with _failures():
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("neither http nor https")
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        answer = _opener().open(request, timeout=SILENCE)
    with answer, files.named(part):
        kept = _kept(answer, have, size)
        say(f"downloading {url}: {size - kept:,} bytes")
        with part.open("ab" if kept else "wb") as f, contextlib.closing(_progress(part.stem, kept, size)) as progress:
            for block in _blocks(answer, size - kept):
                f.write(block)
                progress.step(len(block))
    if (found := part.stat().st_size) < size:
        raise _Failed(f"cut off at {found:,} of {size:,} bytes")
    return kept


def _kept(answer: http.client.HTTPResponse, have: int, size: int) -> int:
    """How many bytes the answer leaves out, since we have them: `have`, or none of a server that knows no ranges."""
    kept, total = 0, answer.headers.get("Content-Length") or str(size)
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""), re.ASCII)
        if found is None or found[1] != str(have):
            raise _Failed(f"sends {answer.headers.get('Content-Range')!r} where bytes {have}- are wanted", None)
        kept, total = have, found[2].replace("*", str(size))
    if total != str(size):
        raise _Failed(f"has {total} bytes, not the {size:,} expected", None)
    return kept


def _blocks(answer: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
    """What comes, up to `size` bytes, as long as it is fast enough."""
    began, since = time.monotonic(), 0
    while size:
        with _failures():
            block = answer.read1(min(BLOCK, size))
        if not block:
            return
        yield block
        size, since = size - len(block), since + len(block)
        if (seconds := time.monotonic() - began) > SPELL:
            if since < seconds * SLOWEST:
                raise _Failed(f"too slow: {since:,} bytes in {seconds:.0f} s")
            began, since = time.monotonic(), 0


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Tell what goes wrong in the network from what goes wrong with our disk."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        what = "redirects in a circle, or to what is no http" if error.code < 400 else http.client.responses.get(error.code, "")
        raise _Failed(f"{error.code} {what}", _seconds(error.headers.get("Retry-After")) if error.code in PASSING else None) from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise _Failed(_line(str(getattr(error, "reason", error)) or type(error).__name__)) from None
    except ValueError as error:
        raise _Failed(_line(str(error)), None) from None


def _line(text: str) -> str:
    """What a server may have worded, as a part of a line."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:200]


def _seconds(asked: str | None) -> float:
    """Of a Retry-After, a number or a date (RFC 9110, section 10.2.3); 0 if it is neither."""
    asked = (asked or "0").strip()
    try:
        return float(asked) if asked.isdecimal() else email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https, ten at most; without reading all that the redirecting server says besides, which may have no end."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, *rest: Any) -> urllib.request.Request | None:
        fp.close()
        return super().redirect_request(req, fp, *rest)


def _opener() -> urllib.request.OpenerDirector:
    """As the proxy variables are now; knows http and https alone, no ftp, no file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _progress(what: str, first: int, total: int) -> Progress:
    return show_progress(what, first=first, total=total, units="bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
