"""A server of files on this machine, which misbehaves as it is told."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from serving import Serving

Way = Callable[["Answer", bytes], None]  # how an answer is given, of a file with that content


class Web(Serving):
    """Serves `files` while it is entered; the first answers for a path are given in its `ways`, one each, the others well.

    `asked` is what was asked for, in order: path and range. A way that waits ends with `leave`.
    """

    def __init__(self, **files: bytes) -> None:
        super().__init__(Answer)
        self.files = {f"/{name}": content for name, content in files.items()}
        self.ways: dict[str, list[Way]] = {}
        self.asked: list[tuple[str, str | None]] = []

    @property
    def ranges(self) -> list[str | None]:
        return [wanted for _, wanted in self.asked]


class Answer(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        ways = self.server.ways.get(self.path, [])
        content = self.server.files.get(self.path)
        if ways:
            ways.pop(0)(self, content or b"")
        elif content is None:
            self.send_error(404)
        else:
            well(self, content)

    def begin(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def well(answer: Answer, content: bytes, upto: int | None = None) -> None:
    """The range that is asked for, or all; of the file no more than its first `upto` bytes, whatever was announced."""
    wanted = answer.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
    if start >= len(content):
        answer.send_error(416)
        return
    ranged = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
    answer.begin(206 if wanted else 200, Content_Length=len(content) - start, **ranged)
    answer.wfile.write(content[start:upto])


def cut(at: int) -> Way:
    """Breaks off there."""
    return lambda answer, content: well(answer, content, at)


def instead(other: bytes) -> Way:
    """Another file in its place."""
    return lambda answer, _: well(answer, other)


def whole(answer: Answer, content: bytes) -> None:
    """Knows of no ranges."""
    answer.begin(200, Content_Length=len(content))
    answer.wfile.write(content)


def refuses(status: int, **headers: object) -> Way:
    return lambda answer, _: answer.begin(status, Content_Length=0, **headers)


def stalls(after: int) -> Way:
    """Sends so many bytes, and then nothing, until the server leaves."""

    def way(answer: Answer, content: bytes) -> None:
        well(answer, content, after)
        answer.server.leave.wait()

    return way


def endless(status: int, **headers: object) -> Way:
    """Never ends, and announces no length."""

    def way(answer: Answer, _: bytes) -> None:
        answer.begin(status, **headers)
        while not answer.server.leave.is_set():
            try:
                answer.wfile.write(bytes(1 << 16))
            except OSError:
                return

    return way
