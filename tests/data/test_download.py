"""Fetching a file: all of it, the right one, in time; else a reason, and nothing left behind."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quill.data import corpus as corpus_module
from quill.data.corpus import CorpusNotFoundError, find_corpus, find_demo_corpus
from quill.data.download import RemoteFile, require_answer
from quill.errors import CorpusError
from quill.files import write_atomically

PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 5000
QUICK = 0.3  # seconds: short enough to wait for, and far from the bound below
SOON = 10.0  # a bound for busy machines


@pytest.fixture(autouse=True)
def only_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


class Answers(BaseHTTPRequestHandler):
    """Serves PLAY in the way that the path names."""

    release = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/missing":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(PLAY)))
        self.end_headers()
        if self.path == "/good":
            self.wfile.write(PLAY)
        elif self.path == "/truncated":
            self.wfile.write(PLAY[:1000])
        elif self.path == "/altered":
            self.wfile.write(PLAY[:-1] + b"!")
        elif self.path == "/stalls":
            self.wfile.write(PLAY[:1000])
            self.wfile.flush()
            self.release.wait(SOON)
        elif self.path == "/trickles":
            try:
                while not self.release.wait(0.02):
                    self.wfile.write(b"x")
            except OSError:  # the client has gone, as it should
                pass

    def do_HEAD(self) -> None:
        if self.path == "/silent":
            self.release.wait(SOON)
        elif self.path == "/good":
            self.send_response(200)
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def remote() -> Iterator[Callable[[str], RemoteFile]]:
    """Return what makes a RemoteFile for a path of a real server on this machine."""
    Answers.release = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    digest = hashlib.sha256(PLAY).hexdigest()
    yield lambda path: RemoteFile(
        "tinyshakespeare.txt", f"http://127.0.0.1:{server.server_port}/{path}", len(PLAY), digest
    )
    Answers.release.set()
    server.shutdown()
    server.server_close()


def at_port(port: int) -> RemoteFile:
    return RemoteFile("tinyshakespeare.txt", f"http://127.0.0.1:{port}/", 10, "0" * 64)


def test_a_good_file_arrives_whole(remote: Callable[[str], RemoteFile]) -> None:
    assert remote("good").fetch(SOON) == PLAY


@pytest.mark.parametrize(
    ("path", "reason"),
    [("truncated", "less arrived"), ("altered", "not the file"), ("missing", "404")],
)
def test_a_download_that_is_not_the_file_is_refused_with_the_reason(
    path: str, reason: str, remote: Callable[[str], RemoteFile]
) -> None:
    with pytest.raises(CorpusError, match=reason):
        remote(path).fetch(SOON)


@pytest.mark.parametrize("path", ["stalls", "trickles"])
def test_a_slow_transfer_ends_at_the_deadline(path: str, remote: Callable[[str], RemoteFile]) -> None:
    start = time.monotonic()
    with pytest.raises(CorpusError, match=r"within 0\.3 s"):
        remote(path).fetch(QUICK)
    assert time.monotonic() - start < SOON


def test_a_server_is_asked_whether_it_answers_at_all(remote: Callable[[str], RemoteFile]) -> None:
    require_answer(remote("good").address, SOON)
    for path, reason in (("missing", "404"), ("silent", r"within 0\.3 s")):
        with pytest.raises(CorpusError, match=reason):
            require_answer(remote(path).address, SOON if path == "missing" else QUICK)


def test_the_share_that_has_arrived_is_reported_while_it_arrives(remote: Callable[[str], RemoteFile]) -> None:  # U16
    shares: list[float] = []

    def see(share: float) -> None:
        shares.append(share)
        if share:
            Answers.release.set()  # the server has waited for this, and closes

    with pytest.raises(CorpusError, match="less arrived"):
        remote("stalls").fetch(SOON, see)
    assert shares == sorted(shares) and shares[-1] == 1000 / len(PLAY)


def test_a_server_that_accepts_and_never_answers_ends_at_the_deadline() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        start = time.monotonic()
        with pytest.raises(CorpusError, match=r"within 0\.3 s"):
            at_port(silent.getsockname()[1]).fetch(QUICK)
        assert time.monotonic() - start < SOON


def test_a_name_that_is_never_resolved_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> list:
        release.wait(SOON)
        raise socket.gaierror("given up")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    with pytest.raises(CorpusError, match=r"within 0\.3 s"):
        RemoteFile("play.txt", "http://example.invalid/play.txt", 10, "0" * 64).fetch(QUICK)
    assert time.monotonic() - start < SOON
    release.set()


def test_an_unreachable_server_is_reported_as_no_connection() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(CorpusError, match="no connection"):
        at_port(port).fetch(SOON)


def test_an_answer_that_is_not_http_is_reported_as_such() -> None:
    def answer(server: socket.socket) -> None:
        connection = server.accept()[0]
        with connection:
            connection.recv(4096)
            connection.sendall(b"220 mail ready\r\n")

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        with pytest.raises(CorpusError, match="not HTTP"):
            at_port(server.getsockname()[1]).fetch(SOON)
        thread.join()


# ---- the named corpus on top of it


def test_shakespeare_is_downloaded_once_and_then_read_from_the_cache(
    remote: Callable[[str], RemoteFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote("good"))
    first = find_corpus("shakespeare")
    assert first.text == PLAY.decode() and first.note == "Tiny Shakespeare, downloaded"
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote("missing"))
    again = find_corpus("shakespeare", offline=True)
    assert again.text == first.text and again.note == "Tiny Shakespeare, from the cache"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tinyshakespeare.txt"]


def test_a_damaged_cache_is_downloaded_again(
    remote: Callable[[str], RemoteFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote("good"))
    write_atomically(tmp_path / "cache" / "tinyshakespeare.txt", PLAY[:77])
    assert find_corpus("shakespeare").note == "Tiny Shakespeare, downloaded"
    assert (tmp_path / "cache" / "tinyshakespeare.txt").read_bytes() == PLAY


def test_a_cache_that_cannot_be_written_does_not_stop_a_download(
    remote: Callable[[str], RemoteFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be", encoding="utf-8")
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote("good"))
    assert find_corpus("shakespeare").note.startswith("Tiny Shakespeare, downloaded, not kept")


@pytest.mark.parametrize("path", ["missing", "truncated", "altered"])
def test_a_failed_download_says_what_was_tried_and_what_to_do(
    path: str, remote: Callable[[str], RemoteFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote(path))
    with pytest.raises(CorpusNotFoundError) as caught:
        find_corpus("shakespeare")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ("QUILL_DATA_DIR", "cache", "127.0.0.1", "use dataset=pydoc"))
    assert not (tmp_path / "cache").exists()


def test_the_demo_falls_back_to_pydoc_and_says_why(
    remote: Callable[[str], RemoteFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote("missing"))
    corpus = find_demo_corpus()
    assert corpus.name == "pydoc" and "404" in corpus.note and "\n" not in corpus.note
    monkeypatch.setattr(corpus_module, "SHAKESPEARE", remote("good"))
    assert find_demo_corpus().name == "shakespeare"


def test_offline_mode_tries_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(CorpusNotFoundError, match="downloading is off"):
        find_corpus("shakespeare", offline=True)


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "play.txt").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "play.txt", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["play.txt"]
