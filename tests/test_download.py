"""Downloads end whole and checked, or not at all; against a real server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Run
from test_datasets import write_mnist

from pipeline.data.classics import MNIST_FILES
from pipeline.data.download import download
from pipeline.errors import DataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /whole; /cut breaks off each answer half-way; /other is another file of that size."""

    daemon_threads = True
    files: dict[str, bytes]
    asked: list[tuple[str, str | None]]


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + (len(content) - start + 1) // 2 if self.path == "/cut" else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Answer)
    server.files = {"/whole": CONTENT, "/cut": CONTENT, "/other": CONTENT[::-1]}
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    download(tmp_path / "sub" / "x", [url(server, "whole")], MD5)
    assert (tmp_path / "sub" / "x").read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download x \(.*cut off at 896,000 of 1,024,000 bytes\)"):
        download(tmp_path / "x", [url(server, "cut")], MD5)
    assert not (tmp_path / "x").exists()
    download(tmp_path / "x", [url(server, "whole")], MD5)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=512000-", "bytes=768000-", "bytes=896000-"]


def test_a_file_that_is_another_one_is_refused_and_the_next_mirror_asked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file is not the one expected"):
        download(tmp_path / "x", [url(server, "other")], MD5)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []
    download(tmp_path / "x", [url(server, "other"), url(server, "missing"), url(server, "whole")], MD5)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_offline_one_is_told_which_file_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download x \(.*Connection refused.*\); put it into .* by hand, or set data.root"):
        download(tmp_path / "x", ["http://127.0.0.1:9/x"], MD5)


def test_mnist_is_downloaded_once_by_one_of_several_processes(server: Server, run: Run, tmp_path: Path) -> None:
    write_mnist(tmp_path / "served", packed=True)
    for path in (tmp_path / "served").iterdir():
        server.files[f"/mnist/{path.name}"] = path.read_bytes()
    source = f"data.source={{name: mnist, mirrors: ['{url(server, 'mnist')}']}}"
    refused = run(source, until="train", processes=2)
    assert set(refused.codes) == {3}, refused.output  # these are not the official files
    assert "train-images-idx3-ubyte.gz" in refused.output
    assert {path for path, _ in server.asked} == {"/mnist/train-images-idx3-ubyte.gz"}
    assert next(iter(MNIST_FILES)) in refused.output
