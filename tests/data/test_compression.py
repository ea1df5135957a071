"""Compressed texts: .gz and .zst files give the text inside them, and damage is refused in one line."""

import gzip
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from quill.data.corpus import find_corpus
from quill.data.reading import compression, formats
from quill.errors import CorpusError, MissingDependencyError

TEXT = "To be, or not to be: 红楼梦 🙂\r\n" * 300
PLAIN = TEXT.replace("\r\n", "\n")

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda raw: gzip.compress(raw, mtime=0),
    ".zst": zstandard.ZstdCompressor().compress,
}

both = pytest.mark.parametrize("ending", COMPRESS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@both
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_compressed_text_is_the_text(ending: str, tokenizer: str) -> None:
    Path(f"my.txt{ending}").write_bytes(COMPRESS[ending](TEXT.encode()))
    Path("my.txt").write_bytes(TEXT.encode())
    corpus = find_corpus(f"my.txt{ending}", tokenizer=tokenizer)
    assert corpus.text == PLAIN and corpus.sha256 == find_corpus("my.txt").sha256
    assert "Windows line ends" in corpus.note


@both
def test_several_streams_in_one_file_are_one_text(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [COMPRESS[ending](part.encode()) for part in ("one\n", "", "two\n", "three")]
    Path(f"my.txt{ending}").write_bytes(b"".join(parts))
    for size in (1, 7, 1 << 16):
        monkeypatch.setattr(compression, "_PIECE_BYTES", size)
        assert find_corpus(f"my.txt{ending}").text == "one\ntwo\nthree"


def test_zeros_behind_a_gzip_stream_are_padding() -> None:
    Path("my.txt.gz").write_bytes(gzip.compress(b"text") + bytes(1000))
    assert find_corpus("my.txt.gz").text == "text"


@both
def test_compressed_json_lines_give_their_texts(ending: str) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two"))
    Path(f"my.jsonl{ending}").write_bytes(COMPRESS[ending](lines.encode()))
    assert find_corpus(f"my.jsonl{ending}").text == "one\n\ntwo\n"


def test_a_folder_is_read_with_its_compressed_texts() -> None:
    Path("book").mkdir()
    Path("book/a.txt.gz").write_bytes(gzip.compress(b"one"))
    Path("book/b.md.ZST").write_bytes(zstandard.ZstdCompressor().compress(b"two"))
    Path("book/c.tar.gz").write_bytes(gzip.compress(b"\0"))
    corpus = find_corpus("book")
    assert corpus.text == "one\n\ntwo\n" and "skipped 1 .gz" in corpus.note


@both
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_file_that_ends_in_the_middle_is_refused(ending: str, tokenizer: str) -> None:
    raw = COMPRESS[ending](os.urandom(3000).hex().encode())
    for length in (0, len(raw) // 2, len(raw) - 1):
        Path(f"my.txt{ending}").write_bytes(raw[:length])
        with pytest.raises(
            CorpusError, match=rf"^my\.txt\{ending} (cannot be decompressed .*middle|is empty)"
        ) as caught:
            find_corpus(f"my.txt{ending}", tokenizer=tokenizer)
        assert "\n" not in str(caught.value)


@both
def test_contents_that_are_not_compressed_are_refused(ending: str) -> None:
    Path(f"my.txt{ending}").write_bytes(TEXT.encode())
    with pytest.raises(CorpusError, match="not what its ending says"):
        find_corpus(f"my.txt{ending}")


@both
def test_an_invalid_byte_in_a_compressed_text_is_named(ending: str) -> None:
    Path(f"my.txt{ending}").write_bytes(COMPRESS[ending](b"caf\xe9 au lait"))
    with pytest.raises(CorpusError, match="0xE9 at offset 3"):
        find_corpus(f"my.txt{ending}")
    assert find_corpus(f"my.txt{ending}", tokenizer="byte").text == "caf\udce9 au lait"


@both
def test_a_compressed_parquet_file_is_refused_with_advice(ending: str) -> None:
    Path(f"my.parquet{ending}").write_bytes(COMPRESS[ending](b"PAR1"))
    with pytest.raises(CorpusError, match="decompress it first"):
        find_corpus(f"my.parquet{ending}")


@pytest.mark.skipif(importlib.util.find_spec("compression") is not None, reason="this Python reads Zstandard by itself")
def test_zst_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.txt.zst").write_bytes(COMPRESS[".zst"](b"text"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'quill-gpt\[zst\]'"):
        find_corpus("my.txt.zst")


@both
def test_progress_counts_the_bytes_of_the_file(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = COMPRESS[ending](os.urandom(50_000).hex().encode())
    Path(f"my.txt{ending}").write_bytes(raw)
    monkeypatch.setattr(compression, "_PIECE_BYTES", 1000)
    counts: list[int] = []
    formats.read_file(Path(f"my.txt{ending}"), on_bytes=counts.append)
    assert sum(counts) == len(raw) and max(counts) <= 1000


@both
def test_a_stream_continues_where_another_one_was(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_PIECE_BYTES", 100)
    monkeypatch.setattr(formats, "_PIECE_BYTES", 100)
    compressed = b"".join(COMPRESS[ending](line.encode()) for line in TEXT.splitlines(keepends=True))
    for name, raw in ((f"my.txt{ending}", compressed), ("my.txt", TEXT.encode())):
        Path(name).write_bytes(raw)
        stream, text, resumed = formats.FileStream(Path(name)), "", 0
        for piece in stream:
            text += piece
            if stream.resume_at is not None:
                rest = "".join(formats.FileStream(Path(name), start=stream.resume_at))
                assert text + rest == PLAIN
                resumed += 1
        assert text == PLAIN and resumed > 1
