"""Which files are read: of a path, a folder, a glob or a list; and what is refused at once instead of being read."""

import os
import random
import socket
import tracemalloc
from pathlib import Path

import pytest

from quill.data.corpus import find_corpus, find_sources
from quill.data.dataset import prepare_dataset
from quill.data.sources import name_of
from quill.errors import CorpusError

posix = pytest.mark.skipif(os.name == "nt", reason="no such files here")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder that is the home folder too, with no corpus of this machine in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


def save(name: str, content: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def save_run(name: str) -> None:
    """Write the files of a run that could be taken for text."""
    save(f"{name}/config.yaml", "max_iters: 5\n")
    save(f"{name}/checkpoints/step-000005/model.safetensors", b"\0\1")
    save(f"{name}/checkpoints/step-000005/notes.txt", "written by a checkpoint")
    save(f"{name}/metrics.jsonl", '{"event": "step"}\n')
    save(f"{name}/samples.txt", "written by a model")
    save(f"{name}/last", "step-000005")


def refusal(dataset: str | list[str], **how: str) -> str:
    """Return the one line with which a dataset is refused."""
    with pytest.raises(CorpusError) as caught:
        find_corpus(dataset, **how)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- several paths


def test_several_paths_are_read_in_the_order_in_which_they_are_given() -> None:  # U1
    save("book/2.txt", "two")
    save("book/10.md", "ten")
    corpus = find_corpus([save("z.txt", "last name"), "book", save("a.txt", "first name")])
    assert corpus.text == "last name\n\nten\n\ntwo\n\nfirst name\n" and corpus.files == 4
    assert corpus.note.startswith("z.txt and 2 more, ") and "in 4 files" in corpus.note
    assert corpus.title == "z.txt and 2 more" and corpus.source == "z.txt, book, a.txt"


def test_named_corpora_and_files_mix() -> None:
    pydoc = find_corpus("pydoc").text
    assert find_corpus([save("a.txt", "mine"), "pydoc"]).text == "mine\n\n" + pydoc.strip("\r\n") + "\n"


def test_a_file_that_is_found_twice_is_read_once_and_the_note_says_so() -> None:
    save("book/a.txt", "one")
    save("book/b.txt", "two")
    corpus = find_corpus(["book/a.txt", "book", "./book/a.txt", "book/*.txt"])
    assert corpus.text == "one\n\ntwo\n" and "4 files found twice and read once" in corpus.note


def test_the_name_of_several_paths_depends_on_all_of_them_and_on_their_order(folder: Path) -> None:
    names = [name_of(paths) for paths in (["a.txt", "b.txt"], ["b.txt", "a.txt"], ["a.txt"], ["a.txt", "b.txt", "c"])]
    assert len(set(names)) == 4 and names[2] == name_of("a.txt")
    assert names[0] == name_of((Path("a.txt"), folder / "b.txt")) and names[0].startswith("a-and-1-more-")


def test_one_bad_path_among_several_is_named() -> None:
    save("a.txt", "text")
    assert "'b.txt'" in refusal(["a.txt", "b.txt"])
    assert "binary" in refusal(["a.txt", save("c.bin", b"\0")])


@pytest.mark.parametrize("dataset", [[], [""], [" "], ["a.txt", 5], 5, None, {"a.txt": 1}, b"a.txt"])
def test_a_value_that_is_no_path_is_refused_in_one_line(dataset: object) -> None:
    save("a.txt", "text")
    assert "dataset=" in refusal(dataset)  # type: ignore[arg-type]


# ---- a text in place of a path


@pytest.mark.parametrize("text", ["To be,\nor not to be", "x" * 300, "word " * 7000, "a*b?\n" * 9000])
def test_a_text_in_place_of_a_path_is_recognised_and_not_repeated(text: str) -> None:  # U13
    message = refusal(text)
    assert f"a text of {len(text):,} characters" in message and "text=" in message and len(message) < 200


# ---- folders


def test_the_folder_of_a_run_below_a_folder_is_not_text() -> None:  # T3
    save("book/a.txt", "text")
    save_run("book/out")
    save_run("book/deep/er/out-2")
    corpus = find_corpus("book")
    assert corpus.text == "text" and "skipped 2 run folders" in corpus.note


def test_a_text_folder_that_is_also_the_folder_of_a_run_gives_its_texts_alone() -> None:  # T3
    save("book/a.txt", "text")
    save_run("book")
    assert find_corpus("book").text == "text" and find_corpus("book/*.txt").text == "text"
    assert find_corpus("book/*.*").note.endswith("skipped 3 files of runs")


@pytest.mark.parametrize("pattern", ["book/*/*.txt", "book/**/*.txt", "**/*.txt", "*/*/*.txt"])
def test_a_glob_does_not_reach_into_the_folder_of_a_run(pattern: str) -> None:  # T3
    save("book/part/a.txt", "text")
    save_run("book/out")
    assert find_corpus(pattern).text == "text"


def test_a_file_of_a_run_is_read_where_it_is_named_in_full() -> None:
    save_run("out")
    assert find_corpus("out/samples.txt").text == "written by a model"


def test_preparing_a_folder_twice_does_not_read_its_own_tokens() -> None:
    save("book/a.txt", "text " * 20)
    first = prepare_dataset("book", data_dir="book/data")
    assert prepare_dataset("book", data_dir="book/data").sha256 == first.sha256
    assert "skipped" not in find_corpus("book").note


def test_a_folder_says_which_endings_it_skipped_and_how_many() -> None:  # T10
    save("book/a.txt", "text")
    for name in ("1.csv", "2.csv", "3.CSV", "x.json", "Makefile", "photo.jpg", "y.zip"):
        save(f"book/{name}", "more")
    assert find_corpus("book").note.endswith("skipped 3 .csv, 1 .jpg, 1 .json, 1 .zip, 1 more")


@pytest.mark.parametrize("ending", [".py", ".rst", ".html", ".tex", ".org", ".log", ".RST"])
def test_a_folder_reads_other_endings_of_plain_text(ending: str) -> None:  # T10
    save(f"book/a{ending}", "text")
    assert find_corpus("book").text == "text"


def test_a_file_of_another_ending_that_is_not_utf8_is_skipped_and_counted() -> None:  # T10
    save("book/a.txt", "text")
    save("book/b.log", b"caf\xe9")
    save("book/c.log", b"\0")
    corpus = find_corpus("book")
    assert corpus.text == "text" and "skipped 2 .log not in UTF-8" in corpus.note
    assert find_corpus("book", tokenizer="byte").files == 3


@posix
def test_linked_folders_are_read_once_and_without_end() -> None:  # T10
    save("elsewhere/deep/b.txt", "two")
    save("book/a.txt", "one")
    Path("book/link").symlink_to("../elsewhere")
    Path("book/again").symlink_to("link")
    Path("book/loop").symlink_to(".")
    Path("elsewhere/back").symlink_to("../book")
    assert find_corpus("book").text == "one\n\ntwo\n"


@posix
def test_a_recursive_glob_ends_where_links_form_loops() -> None:
    save("book/a.txt", "one")
    save("book/part/b.txt", "two")
    for number in range(6):  # to follow each of them to the system's limit of 40 would take for ever
        Path(f"book/loop-{number}").symlink_to(".")
    corpus = find_corpus("book/**/*.txt")
    assert corpus.text == "one\n\ntwo\n" and find_corpus("**/part/**/*.txt").text == "two"
    assert find_corpus("book/**").text == corpus.text


# ---- what could be read for ever, or not at all


@posix
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_refused_at_once(path: str) -> None:  # R17
    assert f"{path} is a device, not a file" in refusal(path)
    assert "is a device" in refusal(path, tokenizer="byte")


@posix
def test_a_pipe_and_a_socket_are_refused_at_once_wherever_they_are_found() -> None:  # R17
    save("book/a.txt", "text")
    os.mkfifo("book/pipe.txt")
    for dataset in ("book/pipe.txt", "book", "book/*.txt", "book/**/*", ["book/a.txt", "book/pipe.txt"]):
        assert "book/pipe.txt is a pipe, not a file" in refusal(dataset)
    Path("book/pipe.txt").rename("book/pipe.dat")  # an ending that nobody reads
    assert find_corpus("book").text == "text"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.txt")
        assert "s.txt is a socket" in refusal("s.txt")


@posix
def test_a_broken_link_is_named() -> None:
    save("book/a.txt", "text")
    Path("book/b.txt").symlink_to("gone")
    assert "book/b.txt cannot be read: No such file" in refusal("book")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_named() -> None:
    save("book/deep/a.txt", "text")
    Path("book/deep/a.txt").chmod(0)
    assert "book/deep/a.txt cannot be read: Permission denied" in refusal("book")
    Path("book/deep").chmod(0)
    assert "'book/deep' cannot be looked up: Permission denied" in refusal("book")
    Path("book/deep").chmod(0o700)


# ---- names


@pytest.mark.parametrize("name", ["~x.txt", "~nobody-of-this-name/x.txt", "~.txt"])
def test_a_name_may_begin_with_a_tilde(name: str) -> None:  # T8
    assert find_corpus(save(name, "text")).text == "text"
    assert prepare_dataset(name, data_dir="data", tokenizer="byte").val_characters == 1


def test_a_missing_name_that_begins_with_a_tilde_is_one_line() -> None:  # T8
    assert "'~nobody-of-this-name/x.txt'" in refusal("~nobody-of-this-name/x.txt")


def test_the_data_folder_may_lie_below_the_home_folder(folder: Path) -> None:  # T8
    save("texts/a.txt", "text " * 20)
    assert prepare_dataset("~/texts/a.txt", data_dir="~/tokens").folder.parent.parent == folder / "tokens"
    assert not Path("~").exists()


def test_a_long_file_is_read_in_pieces_that_cut_characters_and_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from quill.data.reading import formats

    content = "\ufeffé红🙂\r\n\r\r\nab\r".encode() * 3
    whole = find_corpus(save("a.txt", content))
    for size in range(1, 8):
        monkeypatch.setattr(formats, "_PIECE_BYTES", size)
        assert find_corpus("a.txt").text == whole.text == "é红🙂\n\r\nab\r\ufeffé红🙂\n\r\nab\r\ufeffé红🙂\n\r\nab\r"
        assert "invalid byte 0xFF at offset 9" in refusal(save("bad.txt", "é红🙂".encode() + b"\xff"))
        assert "invalid byte 0xF0 at offset 5" in refusal(save("cut.txt", "é红🙂".encode()[:-1]))
        assert "NUL byte at offset 5" in refusal(save("nul.txt", "é红\0".encode()))
        assert find_corpus("cut.txt", tokenizer="byte").text == "é红\udcf0\udc9f\udc99"


@pytest.mark.parametrize("content", ["é红🙂\nab\n" * 9, "\ufeffé红🙂\r\nab\r", "a\r\nb\n\r" * 9, "\r" * 9])
def test_bytes_that_go_with_a_piece_of_text_are_its_utf_8(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quill.data.reading import formats

    path = Path(save("a.txt", content.encode()))
    for size in range(1, 12):
        monkeypatch.setattr(formats, "_PIECE_BYTES", size)
        stream = formats.FileStream(path)
        pieces = [(text, stream.utf8) for text in stream]
        assert all(utf8 in (None, text.encode()) for text, utf8 in pieces)
        assert "\r" in content or None not in [utf8 for _, utf8 in pieces], "text that was not changed has its bytes"
    records = formats.FileStream(Path(save("a.jsonl", b'{"text": "a"}\n')))
    assert [(text, records.utf8) for text in records] == [("a", None)]


# ---- folders of very many files


def paths_in(*dataset: str) -> list[str]:
    return [str(part.path) for part in find_sources(dataset).parts()]


def test_the_files_of_a_folder_come_in_the_order_of_their_paths() -> None:
    draw = random.Random(0)
    for folder in ("a", "a.d", "a0", "a/b", "a/b-c", "a/b/c", "Z", "é"):
        for name in draw.sample(["a", "a.b", "a-", "b", "b.a", "b0", "Z", "é", "\U0001f642"], 6):
            save(f"book/{folder}/{name}.txt", "text")
    save("elsewhere/x.txt", "text")
    if os.name != "nt":
        Path("book/a/bb").symlink_to("../../elsewhere")
    every = [str(path) for path in Path("book").rglob("*.txt")] + [
        str(path / "x.txt") for path in Path("book").rglob("bb")
    ]
    assert paths_in("book") == sorted(set(every), key=lambda path: Path(path).as_posix())


def test_a_file_is_read_where_its_first_path_is_whatever_leads_to_it_again() -> None:
    for name in ("a", "b", "c", "d"):
        save(f"book/{name}.txt", name)
    os.link("book/b.txt", "book/a2.txt")
    assert paths_in("book/c.txt", "book", "book/*.txt") == [
        os.path.join("book", name) for name in ("c.txt", "a.txt", "a2.txt", "d.txt")
    ]
    assert "7 files found twice and read once" in find_corpus(["book/c.txt", "book", "book/*.txt"]).note


def test_a_file_of_a_large_folder_takes_little_memory() -> None:
    for number in range(4000):
        save(f"book/{number % 7}/story number {number}.txt", "text")
    save("few/a.txt", "text")
    find_sources("few")  # what is allocated once is not counted
    phases: list[str] = []
    tracemalloc.start()
    sources = find_sources("book", on_progress=lambda what, share: phases.append(what))
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len([*sources.parts()]) == 4000
    assert current < 40 * 4000 and peak < 200 * 4000  # bytes
    assert "listing book: 4,000 files" in phases and "checking 4,000 files" in phases


def test_a_folder_of_thousands_of_files_is_one_text() -> None:
    for number in range(3000):
        save(f"book/{number % 10}/{number:04}.txt", f"story {number}")
    by_folder = sorted(range(3000), key=lambda number: (number % 10, number))
    corpus = find_corpus("book")
    assert corpus.files == 3000 and corpus.text == "\n\n".join(f"story {number}" for number in by_folder) + "\n"
