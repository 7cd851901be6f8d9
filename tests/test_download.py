"""Downloads end whole and checked, or not at all; against a real server on this machine. test_download_runs.py has them within runs."""

import email.utils
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from web import Answer, Way, Web, cut, endless, instead, refuses, stalls, well, whole

from bench.faults import mounts
from pipeline.data import download as limits
from pipeline.data.download import BLOCK, Published, download
from pipeline.errors import DataError

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)
WANTED = {"x": Published(SIZE, hashlib.sha256(CONTENT).hexdigest())}
ALTERED = CONTENT[:-2] + b"\0" + CONTENT[-1:]


@pytest.fixture(autouse=True)
def hastily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(x=CONTENT) as served:
        yield served


def fetched(folder: Path, *webs: Web | str) -> bool:
    """Whether `x` is there whole, and nothing of it besides."""
    download(folder, WANTED, [web if isinstance(web, str) else web.address for web in webs])
    return (folder / "x").read_bytes() == CONTENT and not (folder / "x.part").exists()


def refusal(folder: Path, *webs: Web | str) -> str:
    """Why nothing that could be taken for `x` is there."""
    with pytest.raises(DataError) as refused:
        fetched(folder, *webs)
    assert not (folder / "x").exists()
    return str(refused.value)


def test_a_file_arrives_whole(web: Web, tmp_path: Path) -> None:
    assert fetched(tmp_path / "sub", web)
    assert web.asked == [("/x", None)]
    assert fetched(tmp_path / "sub", web)
    assert len(web.asked) == 1


@pytest.mark.parametrize("at", [0, 1, 255, BLOCK - 1, BLOCK, BLOCK + 1, SIZE // 2, SIZE - 1])
def test_a_download_goes_on_where_it_was_cut(web: Web, tmp_path: Path, at: int) -> None:
    web.ways["/x"] = [cut(at)]
    assert fetched(tmp_path, web)
    assert web.ranges == [None, f"bytes={at}-" if at else None]


def test_one_that_is_cut_at_each_try_is_gone_on_with_by_the_next_command(web: Web, tmp_path: Path) -> None:
    web.ways["/x"] = [cut(100), cut(200), cut(300)]
    assert "cut off at 300 of 1,024,000 bytes" in refusal(tmp_path, web)
    assert fetched(tmp_path, web)
    assert web.ranges == [None, "bytes=100-", "bytes=200-", "bytes=300-"]


def test_one_that_was_cut_goes_on_from_another_mirror(web: Web, tmp_path: Path) -> None:
    with Web(x=CONTENT) as other:
        web.ways["/x"] = [cut(100)]
        assert fetched(tmp_path, web, other)
        assert (web.ranges, other.ranges) == ([None], ["bytes=100-"])


def test_what_was_whole_when_it_was_interrupted_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT)
    assert fetched(tmp_path, web)
    assert web.asked == []


def test_a_server_that_knows_no_ranges_sends_all_of_it_again(web: Web, tmp_path: Path) -> None:
    web.ways["/x"] = [cut(100), whole]
    assert fetched(tmp_path, web)
    assert web.ranges == [None, "bytes=100-"]


@pytest.mark.parametrize("part", [b"another file", ALTERED, CONTENT + b"\0"])
def test_a_part_of_what_is_another_file_by_now_is_thrown_away(web: Web, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "x.part").write_bytes(part)
    assert fetched(tmp_path, web)
    assert web.ranges[-1] is None


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_range_other_than_the_one_asked_for_is_not_taken(web: Web, tmp_path: Path, shift: int) -> None:
    def shifted(answer: Answer, content: bytes) -> None:
        answer.begin(206, Content_Length=SIZE - 100, Content_Range=f"bytes {100 + shift}-{SIZE - 1}/{SIZE}")
        answer.wfile.write(content[100:])

    web.ways["/x"] = [cut(100), shifted]
    assert "where bytes 100- are wanted" in refusal(tmp_path, web)
    assert (tmp_path / "x.part").read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("other", [CONTENT[:-1], CONTENT + b"\0", b""])
def test_a_file_of_another_length_is_not_even_read(web: Web, tmp_path: Path, other: bytes) -> None:
    web.ways["/x"] = [lambda answer, _: whole(answer, other)]
    assert f"has {len(other)} bytes, not the 1,024,000 expected" in refusal(tmp_path, web)
    assert len(web.asked) == 1
    assert not (tmp_path / "x.part").exists()


def test_what_is_not_announced_is_read_to_the_length_of_the_file_and_no_further(web: Web, tmp_path: Path) -> None:
    web.ways["/x"] = [endless(200)]
    assert "the file is not the one expected" in refusal(tmp_path, web)
    assert not (tmp_path / "x.part").exists()


def test_a_file_with_a_byte_altered_is_refused_once_and_the_next_mirror_asked(web: Web, tmp_path: Path) -> None:
    with Web(x=ALTERED) as altered:
        assert "the file is not the one expected" in refusal(tmp_path, altered)
        assert not (tmp_path / "x.part").exists()
        assert fetched(tmp_path, altered, web)
        assert altered.ranges == [None, None]


def test_redirects_are_followed_and_the_range_with_them(web: Web, tmp_path: Path) -> None:
    with Web() as other:
        other.ways["/x"] = [refuses(302, Location="/y"), refuses(307, Location="/y")]
        other.ways["/y"] = [refuses(301, Location=f"{web.address}/x")] * 2
        web.ways["/x"] = [cut(100)]
        assert fetched(tmp_path, other)
        assert web.ranges == [None, "bytes=100-"]


def test_a_circle_of_redirects_is_left(web: Web, tmp_path: Path) -> None:
    web.ways["/x"] = [refuses(302, Location="/x")] * 100
    assert "302 redirects in a circle, or to what is no http" in refusal(tmp_path, web)
    assert len(web.asked) <= 11


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_nobody_is_redirected_to_what_is_no_http(web: Web, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    web.ways["/x"] = [refuses(302, Location=f"{scheme}://{tmp_path}/secret")]
    assert "302 redirects in a circle, or to what is no http" in refusal(tmp_path / "data", web)
    assert f"{scheme}://{tmp_path}/x: neither http nor https" in refusal(tmp_path / "data", f"{scheme}://{tmp_path}")


def test_what_a_redirect_says_besides_is_not_read_to_its_end(web: Web, tmp_path: Path) -> None:
    web.ways["/x"] = [endless(302, Location="/x")]
    assert fetched(tmp_path, web)


@pytest.mark.parametrize("after", [0, 100])
def test_a_server_that_stalls_is_left_and_what_it_sent_is_kept(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(limits, "SILENCE", 0.1)
    web.ways["/x"] = [stalls(after)] * 3
    assert "timed out" in refusal(tmp_path, web)
    assert fetched(tmp_path, web)


def test_one_that_says_nothing_at_all_is_left(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says_nothing(answer: Answer, _: bytes) -> None:
        answer.server.leave.wait()

    monkeypatch.setattr(limits, "SILENCE", 0.1)
    web.ways["/x"] = [says_nothing] * 3
    assert "timed out" in refusal(tmp_path, web)
    assert len(web.asked) == 3


def test_one_that_sends_a_byte_now_and_then_is_left(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drips(answer: Answer, content: bytes) -> None:
        answer.begin(200, Content_Length=SIZE)
        try:
            for at in range(SIZE):
                answer.wfile.write(content[at : at + 1])
                if answer.server.leave.wait(0.01):
                    return
        except OSError:
            return

    monkeypatch.setattr(limits, "SPELL", 0.1)
    web.ways["/x"] = [drips] * 3
    assert "too slow: " in refusal(tmp_path, web)
    assert fetched(tmp_path, web)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_refusal_is_taken_for_one(web: Web, tmp_path: Path, status: int) -> None:
    web.ways["/x"] = [refuses(status)]
    assert f"{web.address}/x: {status} " in refusal(tmp_path, web)
    assert len(web.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_trouble_that_may_pass_is_met_with_patience_that_ends(web: Web, tmp_path: Path, status: int) -> None:
    web.ways["/x"] = [refuses(status)] * 5
    assert f"{status} " in refusal(tmp_path, web)
    assert len(web.asked) == 3
    assert fetched(tmp_path, web)


def test_one_that_asks_for_a_second_is_given_it(web: Web, tmp_path: Path) -> None:
    web.ways["/x"] = [refuses(429, Retry_After="1")]
    began = time.monotonic()
    assert fetched(tmp_path, web)
    assert time.monotonic() - began >= 1


def test_no_server_is_given_more_than_a_minute(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(time, "sleep", paused.append)
    tomorrow = email.utils.formatdate(time.time() + 86400, usegmt=True)
    for asked in ("100000", "9" * 400, tomorrow):
        web.ways["/x"] = [refuses(503, Retry_After=asked)]
        assert fetched(tmp_path / asked[:9], web)
    assert paused == [0, limits.LONGEST] * 3


@pytest.mark.parametrize("asked", ["", "soon", "-5", "1e3", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct 2015 07:28:00 GMT"])
def test_a_wish_that_is_none_is_no_wait(web: Web, tmp_path: Path, asked: str) -> None:
    web.ways["/x"] = [refuses(503, Retry_After=asked)]
    assert fetched(tmp_path, web)


def test_what_a_server_words_stays_one_line_without_escapes(web: Web, tmp_path: Path) -> None:
    def rude(answer: Answer, _: bytes) -> None:
        answer.wfile.write(b"\x1b[2Jnot\x07 HTTP\r\n\r\n" + bytes(10))

    web.ways["/x"] = [rude] * 3
    said = refusal(tmp_path, web)
    assert said.isprintable()
    assert "not HTTP" in said


def test_a_proxy_is_asked_where_the_environment_names_one(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Web() as proxy:
        proxy.files["http://images.invalid/x"] = CONTENT
        monkeypatch.setenv("http_proxy", proxy.address)
        assert fetched(tmp_path / "through", "http://images.invalid")
        assert proxy.asked == [("http://images.invalid/x", None)]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetched(tmp_path / "past", web)
        assert len(proxy.asked) == len(web.asked) == 1


def test_a_proxy_that_is_gone_is_named_as_the_trouble_and_its_password_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hunter2hunter2@127.0.0.1:9")
    said = refusal(tmp_path, "http://images.invalid")
    assert "Connection refused" in said
    assert "hunter2" not in said


def test_offline_one_is_told_which_files_to_put_where(tmp_path: Path) -> None:
    (tmp_path / "y").write_bytes(b"")
    with pytest.raises(DataError) as refused:
        download(tmp_path, dict.fromkeys("xyz", WANTED["x"]), ["http://127.0.0.1:9"])
    assert str(refused.value) == (
        f"cannot download x (http://127.0.0.1:9/x: [Errno 111] Connection refused); put x, z into {tmp_path} by hand, or set data.root"
    )


@pytest.mark.skipif(bool(mounts.refused_small()), reason=mounts.refused_small())
def test_a_full_disk_is_the_disk_s_trouble_and_the_part_is_kept(web: Web, tmp_path: Path) -> None:
    with mounts.small(tmp_path, 512):
        with pytest.raises(OSError, match="No space left on device") as full:
            fetched(tmp_path, web)
        assert full.value.filename == str(tmp_path / "x.part")
        assert len(web.asked) == 1
        assert 0 < (tmp_path / "x.part").stat().st_size < SIZE


@pytest.mark.soak
def test_a_download_goes_on_from_a_cut_at_any_byte(tmp_path: Path) -> None:
    content = CONTENT[:500]
    with Web(x=content) as web:
        ways: list[Way] = [cut(at) for at in range(len(content))]
        for at, way in enumerate(ways):
            web.ways["/x"] = [way, instead(content[::-1]) if at % 7 == 6 else well]
            download(tmp_path / str(at), {"x": Published(len(content), hashlib.sha256(content).hexdigest())}, [web.address])
            assert (tmp_path / str(at) / "x").read_bytes() == content
