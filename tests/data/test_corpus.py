"""Finding a text: every kind of file that people have is either read or refused in one helpful line."""

import gzip
import hashlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from quill.data import corpus as module
from quill.data.corpus import CorpusNotFoundError, find_corpus
from quill.data.dataset import prepare_dataset
from quill.data.download import RemoteFile
from quill.data.reading import hub as hub_module
from quill.data.sources import name_of
from quill.errors import CorpusError, MissingDependencyError
from quill.tokenizers.byte import ByteTokenizer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with nothing of this machine in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def save(name: str, content: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def save_parquet(name: str, columns: dict[str, list]) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), name)
    return name


def refusal(dataset: str, **how: object) -> str:
    """Return the one line with which a dataset is refused."""
    with pytest.raises(CorpusError) as caught:
        find_corpus(dataset, **how)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- one file


@pytest.mark.parametrize(
    "text", ["plain", "Ünïcödé", "红楼梦", "🙂👩‍👩‍👧", "τέλος\n", "tab\tand\u2028separator", "\rold Mac\r"]
)
def test_a_text_is_read_unchanged(text: str) -> None:
    corpus = find_corpus(save("my.txt", text))
    assert corpus.text == text and corpus.source == "my.txt" and corpus.files == 1
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert "my.txt" in corpus.note


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_windows_line_ends_and_a_byte_order_mark_are_removed_and_reported(tokenizer: str) -> None:
    corpus = find_corpus(save("my.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"), tokenizer=tokenizer)
    assert corpus.text == "one\ntwo\n"
    assert "Windows line ends" in corpus.note and "byte order mark" in corpus.note


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\t\r\n \xe3\x80\x80\n"])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_file_without_text_is_refused(content: bytes, tokenizer: str) -> None:
    message = refusal(save("my.txt", content), tokenizer=tokenizer)
    assert "is empty" in message or "white space" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_and_utf32_are_recognised_and_the_way_to_utf8_is_shown(encoding: str) -> None:
    message = refusal(save("my.txt", "To be, or not to be: that is the question. ".encode(encoding)))
    assert f"is UTF-{encoding[4:6]} text" in message and "iconv" in message and "(tokenizer=byte)" in message


def test_chinese_in_utf16_with_its_mark_is_recognised_too() -> None:
    assert "is UTF-16 text" in refusal(save("my.txt", b"\xff\xfe" + "红楼梦".encode("utf-16-le")))


def test_invalid_utf8_is_refused_with_the_byte_and_its_offset() -> None:
    message = refusal(save("my.txt", b"caf\xe9 au lait"))
    assert "0xE9 at offset 3" in message and "(tokenizer=byte)" in message


@pytest.mark.parametrize("content", [b"\x7fELF\0\1", gzip.compress(b"text " * 50, mtime=0), b"text\0text"])
def test_a_binary_file_is_refused_with_its_kind(content: bytes) -> None:
    message = refusal(save("my.bin", content))
    assert ("NUL byte at offset" in message or "invalid byte" in message) and "(tokenizer=byte)" in message


@pytest.mark.parametrize("content", [b"caf\xe9\r\n", b"\0\r\n\xff", "naïve".encode("utf-16"), bytes(range(256))])
def test_the_byte_tokenizer_gets_every_byte_of_a_binary_file(content: bytes) -> None:
    corpus = find_corpus(save("my.bin", content), tokenizer="byte")
    assert ByteTokenizer().encode(corpus.text, compact=True).tobytes() == content
    assert "byte for byte" in corpus.note


def test_a_file_without_read_permission_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    name = save("my.txt", "secret")
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        Path(name).chmod(0)
    else:  # nothing is forbidden to root

        def refuse(path: Path, *_: object, **__: object) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", refuse)
    assert "my.txt cannot be read: Permission denied" in refusal(name)


def test_a_folder_without_read_permission_is_not_reported_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    save("book/my.txt", "secret")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "'book' cannot be looked up: Permission denied" in refusal("book")


# ---- several files


def test_a_folder_is_read_with_its_folders_in_a_fixed_order() -> None:
    save("book/b.txt", "two\n")
    save("book/a/deep/z.md", "one\r\n")
    save("book/c.TXT", "three")
    for ignored in ("book/.git/x.txt", "book/.hidden.txt", "book/photo.jpg"):
        save(ignored, b"\0")
    save("book/empty.txt", "")
    corpus = find_corpus("book")
    assert corpus.text == "one\n\ntwo\n\nthree\n" and corpus.files == 3
    assert "3 files" in corpus.note and "Windows" in corpus.note
    assert find_corpus("book/").name == corpus.name == name_of("book") and corpus.name.startswith("book-")


def test_a_glob_takes_what_it_matches_whatever_the_ending() -> None:
    save("src/a.py", "print(1)\n")
    save("src/deep/b.py", "print(2)\n")
    save("src/c.txt", "no")
    assert find_corpus("src/**/*.py").text == "print(1)\n\nprint(2)\n"
    assert find_corpus("src/?.txt").text == "no"
    assert "no file matches 'src/*.rs'" in refusal("src/*.rs")


def test_a_file_whose_name_looks_like_a_glob_is_a_file() -> None:
    assert find_corpus(save("notes [1].txt", "text")).text == "text"


def test_moving_text_between_files_changes_the_digest() -> None:
    save("book/1.txt", "ab")
    save("book/2.txt", "c")
    before = find_corpus("book").sha256
    save("book/1.txt", "a")
    save("book/2.txt", "bc")
    assert find_corpus("book").sha256 != before


def test_a_folder_with_nothing_usable_says_what_is_there() -> None:
    for number in range(3):
        save(f"photos/{number}.jpg", b"\xff\xd8")
    message = refusal("photos")
    assert "3 .jpg" in message and ".txt" in message
    Path("void").mkdir()
    assert "nothing at all" in refusal("void")


def test_a_bad_file_in_a_folder_is_named() -> None:
    save("book/good.txt", "text")
    save("book/bad.txt", b"\0")
    assert str(Path("book/bad.txt")) in refusal("book")


# ---- JSON lines and Parquet


def test_json_lines_give_their_texts() -> None:
    lines = [{"text": "one\r\n", "id": 1}, {"text": "红楼梦"}, {"text": None}, {"text": ""}, {"text": "🙂"}]
    name = save("my.jsonl", "\ufeff" + "\r\n".join(json.dumps(line) for line in lines) + "\r\n\r\n")
    corpus = find_corpus(name)
    assert corpus.text == "one\n\n红楼梦\n\n🙂\n" and "byte order mark" in corpus.note


def test_half_a_character_in_json_becomes_the_replacement_character() -> None:
    for tokenizer in ("char", "byte"):
        corpus = find_corpus(save("my.jsonl", r'{"text": "a\ud83d b\udc80 \ud83d\ude42"}'), tokenizer=tokenizer)
        assert corpus.text == "a\ufffd b\ufffd 🙂"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"title": "x", "body": "y"}', "line 2 has no column 'text' (its columns: 'title', 'body')"),
        ("{}", "(its columns: none)"),
        ("{oops", "line 2 is not JSON"),
        ('"text"', "line 2 is not a JSON object"),
        ('{"text": ["a"]}', "holds list"),
        ("[" * 100_000, "line 2"),
    ],
)
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_line_that_holds_no_text_is_named(line: str, complaint: str, tokenizer: str) -> None:
    assert complaint in refusal(save("my.jsonl", '{"text": "fine"}\n' + line), tokenizer=tokenizer)


def test_json_lines_without_any_text_are_empty() -> None:
    assert "is empty" in refusal(save("my.jsonl", '{"text": ""}\n{"text": null}\n'))


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_parquet_gives_its_texts(kind: str) -> None:
    texts = pyarrow.array(["one\r\n", None, "红楼梦", ""], getattr(pyarrow, kind)())
    corpus = find_corpus(save_parquet("my.parquet", {"id": [1, 2, 3, 4], "text": texts}))  # type: ignore[dict-item]
    assert corpus.text == "one\n\n红楼梦\n"


def test_parquet_without_text_names_its_columns() -> None:
    assert "(its columns: 'story', 'n')" in refusal(save_parquet("my.parquet", {"story": ["a"], "n": [1]}))
    assert "'text' holds int64" in refusal(save_parquet("my.parquet", {"text": [1]}))


@pytest.mark.parametrize("harm", ["cut", "flipped", "no parquet at all"])
def test_damaged_parquet_is_refused_in_one_line(harm: str) -> None:
    raw = Path(save_parquet("my.parquet", {"text": ["a" * 100]})).read_bytes()
    flipped = raw[:4] + bytes(byte ^ 0xFF for byte in raw[4:44]) + raw[44:]  # the header of the first page
    save("my.parquet", {"cut": raw[:-20], "flipped": flipped}.get(harm, b"text"))
    assert "is not a Parquet file, or is damaged" in refusal("my.parquet")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    name = save_parquet("my.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'quill-gpt\[parquet\]'"):
        find_corpus(name)


# ---- names


def test_pydoc_is_always_there_and_always_the_same() -> None:
    corpus = find_corpus("pydoc", offline=True)
    assert corpus.name == "pydoc" and corpus.source == "built in"
    assert len(corpus.text) > 100_000 and corpus == find_corpus("pydoc")


def test_shakespeare_is_taken_from_the_data_folder_only_if_it_is_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    play = b"First Citizen:\n" * 100
    remote = RemoteFile("tinyshakespeare.txt", "http://127.0.0.1:9/", len(play), hashlib.sha256(play).hexdigest())
    monkeypatch.setattr(module, "SHAKESPEARE", remote)
    save("data/tinyshakespeare.txt", play)
    corpus = find_corpus("shakespeare")
    assert corpus.text == play.decode() and corpus.note == "Tiny Shakespeare, from QUILL_DATA_DIR"
    save("data/tinyshakespeare.txt", play.replace(b"\n", b"\r\n"))
    assert "is not Tiny Shakespeare" in refusal("shakespeare")


@pytest.mark.parametrize("place", ["data", "cache"])
def test_tinystories_is_read_from_local_files(place: str) -> None:
    assert "roneneldan/TinyStories" in refusal("tinystories", offline=True)
    save(f"{place}/TinyStories-train.txt", "Once upon a time")
    assert find_corpus("tinystories").text == "Once upon a time"
    save_parquet(f"{place}/tinystories/train.parquet", {"text": ["One day", "The end"]})
    corpus = find_corpus("tinystories")
    assert corpus.text == "One day\n\nThe end\n" and corpus.name == "tinystories"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder with the schema of TinyStories, which the datasets library loads as it loads a repository."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr(hub_module, "REPOSITORY", str(tmp_path / "hub"))
    save_parquet("hub/train-00000-of-00002.parquet", {"text": ["One day", "The end"], "id": [1, 2]})
    save_parquet("hub/train-00001-of-00002.parquet", {"text": ["Lily ran"], "id": [3]})
    save_parquet("hub/validation-00000-of-00001.parquet", {"text": ["A red ball"], "id": [4]})
    return tmp_path / "hub"


def test_tinystories_is_loaded_by_the_datasets_library_once(hub: Path, tmp_path: Path) -> None:
    phases: list[tuple[str, float]] = []
    corpus = find_corpus("tinystories", on_progress=lambda *phase: phases.append(phase))
    assert corpus.text == "One day\n\nThe end\n\nLily ran\n\nA red ball\n" and corpus.name == "tinystories"
    assert ("downloading TinyStories, train: 3 stories", 1.0) in phases
    shutil.rmtree(hub)
    assert find_corpus("tinystories", offline=True).sha256 == corpus.sha256
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.*")) == ["train.parquet", "validation.parquet"]


def test_prepared_tinystories_is_not_downloaded_again(hub: Path, tmp_path: Path) -> None:
    prepared = prepare_dataset("tinystories", tokenizer="byte")
    shutil.rmtree(tmp_path / "cache")
    again = prepare_dataset("tinystories", tokenizer="byte")
    assert again.sha256 == prepared.sha256 and not (tmp_path / "cache/tinystories").exists()


def test_what_the_library_cannot_load_is_one_line(hub: Path, tmp_path: Path) -> None:
    shutil.rmtree(hub)
    save_parquet("hub/train.parquet", {"story": ["One day"]})
    assert "downloading it failed (the datasets library: " in refusal("tinystories")
    assert not [*(tmp_path / "cache").rglob("*")]


def test_tinystories_without_a_network_or_the_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # it does not listen
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "and downloading it failed (no connection: " in refusal("tinystories")
    monkeypatch.setattr(hub_module.importlib.util, "find_spec", lambda name: None)
    assert "not installed: pip install 'quill-gpt[datasets]'" in refusal("tinystories")


@pytest.mark.parametrize(
    ("dataset", "meant"),
    [
        ("shakespere", "shakespeare"),
        ("Pydoc", "pydoc"),
        ("hamlt.txt", "hamlet.txt"),
        ("texts/macbth.txt", "macbeth.txt"),
    ],
)
def test_a_mistyped_corpus_name_is_answered_with_the_nearest_one(dataset: str, meant: str) -> None:
    save("hamlet.txt", "text")
    save("texts/macbeth.txt", "text")
    message = refusal(dataset)
    assert "did you mean" in message and meant in message


@pytest.mark.parametrize("dataset", ["", "missing.txt", "no/such/folder/x.txt", "x" * 5000, "a\0b"])
def test_a_missing_path_is_an_error_of_one_line(dataset: str) -> None:
    with pytest.raises(CorpusError):
        find_corpus(dataset)


def test_a_missing_corpus_and_an_invalid_one_are_different_errors() -> None:
    with pytest.raises(CorpusNotFoundError) as caught:
        find_corpus("missing.txt")
    assert caught.value.reason in str(caught.value)
    with pytest.raises(CorpusError) as other:
        find_corpus(save("my.txt", b"\0"))
    assert not isinstance(other.value, CorpusNotFoundError)


@pytest.mark.parametrize(
    "dataset", ["a b/ü红.txt", "../../etc/pass wd", "CON", "x" * 300, "***", "\udcff.txt", "C:\\x.txt", "."]
)
def test_the_name_of_any_dataset_is_safe_for_a_folder(dataset: str) -> None:
    name = name_of(dataset)
    assert name == name_of(dataset) and 0 < len(name) < 60
    assert not set(name) & set('/\\:*?"<>| ') and not name.startswith(".") and name.upper() != "CON"
    name.encode()


def test_the_same_file_has_the_same_name_however_it_is_written(folder: Path) -> None:
    assert name_of("my.txt") == name_of("./my.txt") == name_of(str(folder / "my.txt"))


def test_a_path_from_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder))
    save("my.txt", "text")
    assert find_corpus("~/my.txt").text == "text" and name_of("~/my.txt") == name_of("my.txt")


def test_a_python_without_its_help_text_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "without pydoc_data" in refusal("pydoc")
