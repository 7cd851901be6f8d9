"""Files from the web: resumed, checked by size and digest, and there only when whole."""

import contextlib
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from pipeline.errors import DataError
from pipeline.runtime.console import show_progress
from pipeline.runtime.progress import Progress

TIMEOUT = 30  # seconds without a byte
TRIES = 3  # of each mirror


def download(path: Path, urls: Sequence[str], md5: str) -> None:
    """Fetch `path` from the first of `urls` that gives a file with digest `md5`; a part is kept and resumed.

    Raises:
        DataError: none did; the message says which file to put where.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = []
    with FileLock(f"{path}.lock"):
        for url in [u for u in urls for _ in range(TRIES)]:
            if path.exists():
                return
            try:
                _fetch(url, part)
            except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
                continue
            if file_md5(part) == md5:
                part.replace(path)
                return
            failures.append(f"{url}: the file is not the one expected")
            part.unlink()
    reasons = "; ".join(dict.fromkeys(failures))
    raise DataError(f"cannot download {path.name} ({reasons}); put it into {path.parent} by hand, or set data.root")


def file_md5(path: Path) -> str:
    """md5, because that is what the data sets' authors publish; it tells copies apart, no more."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or the part is of another file: its digest will tell
            return
        raise
    with answer:
        resumed = have > 0 and answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
        with part.open("ab" if resumed else "wb") as f, contextlib.closing(_progress(url, f.tell(), total)) as progress:
            while block := answer.read(1 << 18):
                f.write(block)
                progress.step(len(block))
        if total and part.stat().st_size < total:
            raise OSError(f"cut off at {part.stat().st_size:,} of {total:,} bytes")


def _progress(url: str, first: int, total: int) -> Progress:
    return show_progress(url.rpartition("/")[2], first=first, total=total or None, units="bytes")
