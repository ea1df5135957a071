"""Corpora that may be larger than memory: the same tokens as in memory, resumed after a kill, in constant memory."""

import contextlib
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.data import dataset as module
from quill.data import large, spool
from quill.data.dataset import Dataset, prepare_dataset
from quill.data.reading import formats
from quill.data.reading.formats import join_texts
from quill.data.spool import Joiner
from quill.errors import CorpusError, TokenizerError
from quill.tokenizers.char import CharTokenizer

TEXT = "\r\n".join(f"{n}: to be, or not to be, 红楼梦 🙂 é" for n in range(200)) + "\r\n"

unix = pytest.mark.skipif(os.name == "nt", reason="no such signals and locks here")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with nothing of this machine in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@contextlib.contextmanager
def in_small_pieces(save: int = 1000) -> Iterator[pytest.MonkeyPatch]:
    """Prepare every text as a large one, in pieces of a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE_TEXT", 0)
        patch.setattr(large, "_SAVE_BYTES", save)
        patch.setattr(large, "_SMALL_FILE", 100)
        patch.setattr(spool, "_GATHERED_CHARACTERS", 50)
        patch.setattr(spool, "_SLICE_BYTES", 101)
        patch.setattr(formats, "_PIECE_BYTES", 37)
        yield patch


def prepare(*paths: str, tokenizer: str | CharTokenizer = "char", save: int = 1000, **how: object) -> Dataset:
    """Prepare a text as a large one."""
    with in_small_pieces(save):
        return prepare_dataset(paths, tokenizer=tokenizer, data_dir="large", **how)  # type: ignore[arg-type]


def contents(prepared: Dataset) -> dict[str, Any]:
    """Return everything about a dataset that does not depend on how it was made."""
    facts = {key: value for key, value in vars(prepared).items() if key not in ("folder", "files", "train", "val")}
    return facts | {"train": prepared.train.tobytes(), "val": prepared.val.tobytes()}


def left_over() -> list[Path]:
    return [path for path in Path("large").rglob("*") if ".unfinished" in str(path) or ".draft" in str(path)]


def write_everything() -> list[str]:
    """Write files of every kind, and return their paths."""
    Path("first.txt").write_bytes(b"\n\n" + TEXT.encode() + b"\n\n")
    Path("book/deep").mkdir(parents=True)
    Path("book/a.txt").write_bytes(b"\xef\xbb\xbf\r\n" + TEXT.encode())
    Path("book/b.txt").write_bytes(b"")
    Path("book/c.html").write_bytes(TEXT.encode() + b"caf\xe9")
    Path("book/d.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    Path("book/deep/e.jsonl").write_text(
        "\n".join(json.dumps({"text": t}) for t in ["\none\r\n", "", TEXT, "\n"]), encoding="utf-8"
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": ["", TEXT, None, "x\n"]}), "book/f.parquet")
    Path("book/photo.jpg").write_bytes(b"\xff\xd8")
    return ["first.txt", "pydoc", "book"]


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_the_tokens_are_those_of_the_text_in_memory(tokenizer: str) -> None:
    paths = write_everything()
    expected = prepare_dataset(paths, tokenizer=tokenizer)
    prepared = prepare(*paths, tokenizer=tokenizer, save=100_000)
    assert contents(prepared) == contents(expected) and not left_over()
    assert {path.name for path in prepared.folder.iterdir()} == {"train.bin", "val.bin", "dataset.json"}


@pytest.mark.parametrize("raw", [b"\n\na\n", b"caf\xe9\r\n" * 50, b"\0\xff" * 100, b"\xf0\x9f\x99" * 99])
def test_a_file_of_any_bytes_is_taken_byte_for_byte_by_the_byte_tokenizer(raw: bytes) -> None:
    Path("any.bin").write_bytes(b"valid at first\r\n" * 20 + raw)
    expected = prepare_dataset("any.bin", tokenizer="byte")
    assert contents(prepare("any.bin", tokenizer="byte")) == contents(expected)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text("a\n\r", max_size=6), max_size=5), st.integers(1, 3))
def test_texts_are_joined_as_in_memory(texts: list[str], size: int) -> None:
    joiner, joined = Joiner(), ""
    for number, text in enumerate(texts):
        joiner.begin()
        for start in range(0, len(text), size):
            several = any(texts[:number]) or any(texts[number + 1 :])
            joined += joiner.add(text[start : start + size], lambda several=several: several)
    assert joined + joiner.end() == join_texts(texts)
    assert joiner.texts == sum(map(bool, texts))


def ends_after_save(number: int, paths: list[str], tokenizer: str, data_dir: str) -> bool:
    """Prepare a text until its progress was saved this many times; return False if that happens less often."""
    save, calls = large.write_atomically, 0

    def save_and_end(path: Path, data: str) -> None:
        nonlocal calls
        calls += 1
        save(path, data)
        if calls == number:
            raise KeyboardInterrupt

    with in_small_pieces(save=4000) as patch:
        patch.setattr(large, "write_atomically", save_and_end)
        try:
            prepare_dataset(paths, tokenizer=tokenizer, data_dir=data_dir)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_work_that_ends_after_any_save_is_continued_and_ends_with_the_same_tokens(tokenizer: str) -> None:
    paths = [path for path in write_everything() if path != "pydoc"]
    expected = contents(prepare_dataset(paths, tokenizer=tokenizer))
    ended, stages = 0, set[str]()
    for number in range(1, 1000):
        data_dir = f"large/{number}"
        if not ends_after_save(number, paths, tokenizer, data_dir):
            break
        ended += 1
        (draft,) = Path(data_dir).glob("*/.*.unfinished")
        progress = json.loads((draft / "progress.json").read_text("utf-8"))
        stages |= progress.keys()
        for name in ("text", "train.bin", "val.bin")["read" in progress :]:
            with contextlib.suppress(FileNotFoundError), open(draft / name, "ab") as file:
                file.write(b"what a killed process wrote after its last save")
        with in_small_pieces(save=4000):
            again = prepare_dataset(paths, tokenizer=tokenizer, data_dir=data_dir)
        assert contents(again) == expected and not left_over()
    assert ended > 10 and {"reading", "read", "encoding"} <= stages


utf8_or_not = st.one_of(
    st.text(st.sampled_from("aé红🙂\n")).map(str.encode),
    st.lists(st.sampled_from([b"a", "é".encode(), "红".encode(), "🙂".encode(), b"\x80", b"\xe7", b"\xf0\x9f"])).map(
        b"".join
    ),
)


@settings(deadline=None)
@given(utf8_or_not, st.integers(8, 20), st.data())
def test_the_last_characters_begin_where_python_counts_them(raw: bytes, size: int, data: st.DataObject) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    last = data.draw(st.integers(1, len(text))) if text else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_SLICE_BYTES", size)
        if last:
            start = spool.start_of_last(io.BytesIO(raw), len(raw), last)
            assert raw[start:].decode("utf-8", "surrogateescape") == text[-last:]
        with pytest.raises(spool.DamagedError):
            spool.start_of_last(io.BytesIO(raw), len(raw), len(text) + 1)


@settings(deadline=None)
@given(utf8_or_not, st.integers(8, 20))
def test_slices_of_utf8_join_to_the_whole_and_split_no_character(raw: bytes, size: int) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_SLICE_BYTES", size)
        slices = [*spool.utf8_slices(io.BytesIO(raw), 0, len(raw))]
        assert b"".join(piece for piece, _ in slices) == raw
        assert [end for _, end in slices] == np.cumsum([len(piece) for piece, _ in slices]).tolist()
        assert "".join(piece.decode("utf-8", "surrogateescape") for piece, _ in slices) == text
        with pytest.raises(spool.DamagedError):
            list(spool.utf8_slices(io.BytesIO(raw), 0, len(raw) + 1))


# Runs `quill prepare` in small pieces, and waits to be killed once it reports a phase for the eighth time.
WAIT = """
import signal, sys
from quill.data import dataset, large, spool
from quill.data.reading import formats
from quill.tracking.phase_display import PhaseDisplay
dataset.LARGE_TEXT, large._SMALL_FILE, large._SAVE_BYTES = 0, 1 << 18, 1 << 18
formats._PIECE_BYTES, spool._SLICE_BYTES = 1 << 18, 1 << 18
phase, left = sys.argv[1], 8

def wait(self, what, share):
    global left
    left -= what.startswith(phase)
    if left == 0:
        print(what, flush=True)
        signal.pause()

PhaseDisplay.__call__ = wait
from quill.__main__ import main
sys.exit(main(["prepare", "big.txt", "--data_dir=large", *sys.argv[2:]]))
"""


def write_big(size: int = 3_000_000) -> None:
    draw = random.Random(0)
    lines = [f"{n * n} to be, or not to be, é\n" for n in range(1000)]
    with open("big.txt", "w", encoding="utf-8", newline="") as file:
        file.writelines(draw.choices(lines, k=size // 30))


@unix
@pytest.mark.parametrize(("phase", "checked"), [("reading", "read"), ("encoding", "encoded")])
def test_a_killed_command_is_continued_by_the_next_one(
    phase: str, checked: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_big()
    command = [sys.executable, "-c", WAIT, phase]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None and process.stdout.readline().startswith(phase)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (draft,) = Path("large").glob("*/.char.unfinished")
    assert (draft / "progress.json").is_file()
    assert not [*Path("large").rglob("dataset.json")], "half of the work looks like the whole"
    phases: dict[str, float] = {}

    def note(what: str, share: float) -> None:
        phases.setdefault(what, share)

    with monkeypatch.context() as patch:
        patch.setattr(module, "LARGE_TEXT", 0)
        patch.setattr(large, "_SMALL_FILE", 1 << 18)
        prepared = prepare_dataset("big.txt", data_dir="large", on_progress=note)
    assert f"checking what was {checked} before" in phases
    assert phases.get("reading big.txt", 1.0) > 0.2 and (phase == "reading" or "reading big.txt" not in phases)
    expected = prepare_dataset(text=Path("big.txt").read_text("utf-8"))
    assert (prepared.sha256, prepared.tokenizer) == (expected.sha256, expected.tokenizer)
    assert prepared.train.tobytes() == expected.train.tobytes() and prepared.val.tobytes() == expected.val.tobytes()
    assert not left_over()


@unix
@pytest.mark.usefixtures("signals")
def test_ctrl_c_leaves_what_can_be_continued_and_says_interrupted(environment: dict[str, str]) -> None:
    write_big()
    command = [sys.executable, "-c", WAIT, "encoding"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "encoding\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert (process.returncode, error) == (130, "quill prepare: interrupted\n")
    assert [*Path("large").glob("*/.char.unfinished/progress.json")]


@unix
@pytest.mark.long
def test_three_commands_that_prepare_one_large_text_share_the_work(environment: dict[str, str]) -> None:
    write_big(20_000_000)
    command = [sys.executable, "-m", "quill", "prepare", "big.txt", "--data_dir=large"]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)]
    outputs = {process.communicate()[0] for process in processes}
    assert len(outputs) == 1 and "corpus      big.txt, " in outputs.pop()
    assert [process.returncode for process in processes] == [0, 0, 0] and not left_over()


# Runs `quill prepare`, and prints the largest memory of this process in KiB (without that of the parent it came from).
MEASURED = """
from pathlib import Path
from quill.__main__ import main
assert main(["prepare", "big.txt", "--data_dir=large"]) == 0
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
@pytest.mark.long
def test_a_text_several_times_as_large_takes_the_same_memory(environment: dict[str, str]) -> None:
    peaks = []
    for size in (30_000_000, 120_000_000):
        write_big(size)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED], env=environment, capture_output=True, encoding="utf-8", check=True
        )
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 20 and peaks[1] < 150, peaks


def test_files_that_did_not_change_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.txt").write_text(TEXT, encoding="utf-8")
    first = prepare("my.txt")
    with monkeypatch.context() as patch:
        patch.setattr(large, "FileStream", None)  # would fail if it were called
        assert contents(prepare("my.txt")) == contents(first)
    Path("my.txt").write_text(TEXT.replace("not", "hot"), encoding="utf-8")  # of the same size
    os.utime("my.txt", ns=(0, 1))
    assert prepare("my.txt").sha256 != first.sha256


def test_force_begins_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.txt").write_text(TEXT, encoding="utf-8")
    before = prepare("my.txt").folder.stat().st_ino
    phases = set[str]()
    assert prepare("my.txt", force=True, on_progress=lambda what, _: phases.add(what)).folder.stat().st_ino != before
    assert "reading my.txt" in phases


@pytest.mark.parametrize("harm", ["text is shorter", "text is missing", "progress is damaged", "train.bin is missing"])
def test_damage_to_what_an_earlier_process_wrote_begins_the_work_again(harm: str) -> None:
    Path("my.txt").write_text(TEXT, encoding="utf-8")
    assert ends_after_save(4, ["my.txt"], "char", "large")
    (draft,) = Path("large").glob("*/.char.unfinished")
    assert "encoding" in json.loads((draft / "progress.json").read_text("utf-8"))
    name, _, _ = harm.partition(" ")
    if "missing" in harm:
        (draft / name).unlink()
    elif name == "text":
        os.truncate(draft / "text", 100)
    else:
        (draft / "progress.json").write_text("{", encoding="utf-8")
    assert contents(prepare("my.txt")) == contents(prepare_dataset(["my.txt"])) and not left_over()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n" * 500, "white space"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"text " * 99 + b"\xe9", "0xE9 at offset 495"),
        (b"a", "1 character"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_and_leaves_nothing(content: bytes, message: str) -> None:
    Path("my.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        prepare("my.txt")
    assert str(caught.value).startswith("my.txt") and not [*Path("large").rglob("*")]


def test_a_tokenizer_that_lacks_a_character_is_refused_and_leaves_nothing() -> None:
    Path("my.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(TokenizerError, match="character '0'"):
        prepare("my.txt", tokenizer=CharTokenizer("ab"))
    assert not [*Path("large").rglob("*")]


def test_a_full_disk_is_one_line_and_leaves_nothing() -> None:
    pytest.importorskip("resource", reason="no such limits here")
    Path("my.txt").write_text(TEXT * 10, encoding="utf-8")
    program = (
        "import resource; from quill.errors import CorpusError; from quill.data import dataset\n"
        "dataset.LARGE_TEXT = 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: dataset.prepare_dataset('my.txt', data_dir='large')\n"
        "except CorpusError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no space left for the tokens in ") and done.stdout.count("\n") == 1
    assert not [*Path("large").rglob("*")]
