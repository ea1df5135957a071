"""Laws of prepared tokens: they are the text, whole or not there, and batches are a function of their arguments."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quill.data import dataset as module
from quill.data.corpus import Corpus, CorpusNotFoundError
from quill.data.dataset import open_dataset, prepare_dataset
from quill.errors import CorpusError, TokenizerError

TEXT = "To be, or not to be: that is the question.\n" * 20 + "红楼梦 🙂\n" * 20


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with nothing of this machine in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("QUILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8", newline="")
    return name


def files_below(folder: str) -> set[str]:
    return {path.name for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_both_splits_together_are_the_text(kind: str) -> None:
    prepared = prepare_dataset(write("hamlet.txt", TEXT), tokenizer=kind)
    train, val = prepared.tokenizer.decode(prepared.train), prepared.tokenizer.decode(prepared.val)
    assert train + val == TEXT
    assert len(train) == prepared.train_characters == len(TEXT) * 9 // 10
    assert len(val) == prepared.val_characters
    assert prepared.folder.name == kind and files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_a_text_encoded_in_many_slices_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare_dataset(write("hamlet.txt", TEXT), tokenizer="byte")
    monkeypatch.setattr(module, "_SLICE_CHARACTERS", 7)
    sliced = prepare_dataset("hamlet.txt", tokenizer="byte", data_dir="again")
    assert np.array_equal(whole.train, sliced.train) and np.array_equal(whole.val, sliced.val)


def test_what_was_opened_is_what_was_prepared() -> None:
    prepared = prepare_dataset(write("hamlet.txt", TEXT))
    opened = open_dataset(prepared.folder)
    assert np.array_equal(opened.train, prepared.train) and np.array_equal(opened.val, prepared.val)
    assert opened.tokenizer == prepared.tokenizer and opened.source == prepared.source == "hamlet.txt"
    assert (opened.train_characters, opened.val_characters) == (prepared.train_characters, prepared.val_characters)


def test_the_description_is_plain_json_with_counts_and_origin() -> None:
    prepared = prepare_dataset(write("hamlet.txt", TEXT))
    about = json.loads((prepared.folder / "dataset.json").read_text("utf-8"))
    assert about["source"] == "hamlet.txt" and len(about["sha256"]) == 64 and about["dtype"] == "uint8"
    assert about["train"]["tokens"] == len(prepared.train) and about["tokenizer"]["kind"] == "char"


def test_files_of_an_unchanged_text_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_dataset(write("hamlet.txt", TEXT))
    monkeypatch.setattr(module, "_write", None)  # would fail if it were called
    prepare_dataset("hamlet.txt")


def test_a_changed_text_is_prepared_anew() -> None:
    prepare_dataset(write("hamlet.txt", TEXT))
    prepared = prepare_dataset(write("hamlet.txt", "another " * 100))
    assert prepared.tokenizer.decode(prepared.train).startswith("another")
    assert files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_force_writes_anew_what_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_dataset(write("hamlet.txt", TEXT))
    before = (prepared.folder / "train.bin").stat().st_ino
    del prepared
    assert (prepare_dataset("hamlet.txt", force=True).folder / "train.bin").stat().st_ino != before


def test_tokens_outlive_the_text_they_came_from() -> None:
    prepare_dataset(write("hamlet.txt", TEXT))
    Path("hamlet.txt").unlink()
    prepared = prepare_dataset("hamlet.txt")
    assert prepared.tokenizer.decode(prepared.train)[:5] == "To be" and "not there any more" in prepared.note
    with pytest.raises(CorpusNotFoundError):
        prepare_dataset("hamlet.txt", tokenizer="byte")  # never prepared
    with pytest.raises(CorpusNotFoundError):
        prepare_dataset("hamlet.txt", force=True)


def test_a_text_that_became_unusable_is_not_replaced_by_old_tokens() -> None:
    prepare_dataset(write("hamlet.txt", TEXT))
    Path("hamlet.txt").write_bytes(b"\0\1\2")
    with pytest.raises(CorpusError, match="binary"):
        prepare_dataset("hamlet.txt")


def test_two_texts_of_one_name_do_not_share_a_folder() -> None:
    for name in ("a", "b"):
        Path(name).mkdir()
        write(f"{name}/input.txt", name * 100)
    folders = {prepare_dataset(f"{name}/input.txt").folder for name in ("a", "b")}
    assert len(folders) == 2 and all(folder.parent.name.startswith("input-") for folder in folders)
    assert prepare_dataset(write("pydoc.txt", TEXT)).name != "pydoc"


def test_a_corpus_at_hand_needs_no_finding() -> None:
    corpus = Corpus("mine", "memory", TEXT, "0" * 64, "a text from memory")
    prepared = prepare_dataset("mine", corpus=corpus)
    assert prepared.folder == Path("data/mine/char") and prepared.note == "a text from memory"
    again = prepare_dataset("mine", corpus=replace(corpus, text="other " * 50, sha256="1" * 64))
    assert len(again.train) == 270


def test_a_vocabulary_beyond_a_byte_is_stored_in_two() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))
    prepared = prepare_dataset(write("many.txt", text))
    assert prepared.train.dtype == np.uint16
    assert prepared.tokenizer.decode(prepared.val) == text[540:]


def test_any_bytes_can_be_prepared_as_bytes() -> None:
    raw = bytes(range(256)) * 4 + b"\r\n"
    Path("noise.bin").write_bytes(raw)
    prepared = prepare_dataset("noise.bin", tokenizer="byte")
    assert prepared.train.tobytes() + prepared.val.tobytes() == raw


def test_a_single_character_is_no_dataset() -> None:
    with pytest.raises(CorpusError, match="1 character"):
        prepare_dataset(write("one.txt", "x"))
    assert not list(Path("data").rglob("*bin"))


def test_a_tokenizer_that_does_not_exist_is_refused_before_anything_is_read() -> None:
    with pytest.raises(TokenizerError, match="'word'"):
        prepare_dataset("missing.txt", tokenizer="word")


# ---- damage


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "dataset.json"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "lengthen"])
def test_a_damaged_dataset_is_refused_and_prepared_anew_from_its_text(name: str, harm: str) -> None:
    folder = prepare_dataset(write("hamlet.txt", TEXT)).folder
    path, raw = folder / name, (folder / name).read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": raw[:-3], "flip": b"\xff" + raw[1:], "lengthen": raw + b"}"}[harm])
    with pytest.raises(CorpusError, match=r"damaged|no prepared dataset") as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)
    assert prepare_dataset("hamlet.txt").train_characters == len(TEXT) * 9 // 10


@pytest.mark.parametrize("about", ["[]", "{}", "3", '{"format": 1, "tokenizer": {"kind": "word"}}'])
def test_a_description_that_describes_nothing_is_damage(about: str) -> None:
    folder = prepare_dataset(write("hamlet.txt", TEXT)).folder
    (folder / "dataset.json").write_text(about, encoding="utf-8")
    with pytest.raises(CorpusError, match="damaged"):
        open_dataset(folder)


def test_a_dataset_of_another_format_is_named_as_such() -> None:
    folder = prepare_dataset(write("hamlet.txt", TEXT)).folder
    (folder / "dataset.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(CorpusError, match="format 99"):
        open_dataset(folder)


def test_a_folder_without_a_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="quill prepare"):
        open_dataset(tmp_path)


# ---- writing fails


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_dataset_and_nothing_half_written(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = prepare_dataset(write("hamlet.txt", TEXT)).train.tobytes()
    write("hamlet.txt", "another " * 100)

    def full(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CorpusError, match=r"no space left .*--data_dir"):
            prepare_dataset("hamlet.txt")
        with pytest.raises(CorpusError, match="no space left"):
            prepare_dataset(write("other.txt", TEXT))
    folders = [path for path in Path("data").rglob("*") if path.is_dir()]
    assert {path.name for path in folders[1:]} == {"char"} and len(folders) == 2
    assert open_dataset(folders[1]).train.tobytes() == old


def test_a_real_limit_on_file_sizes_reads_as_no_space_left() -> None:
    pytest.importorskip("resource", reason="no such limits here")
    write("large.txt", TEXT * 100)
    program = (
        "import resource; from quill.errors import CorpusError; from quill.data.dataset import prepare_dataset\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: prepare_dataset('large.txt')\n"
        "except CorpusError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no space left for the tokens in ") and done.stdout.count("\n") == 1
    assert not files_below("data")


def test_the_old_dataset_comes_back_when_the_new_one_cannot_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    old = prepare_dataset(write("hamlet.txt", TEXT))
    kept = old.train.tobytes()
    write("hamlet.txt", "another " * 100)
    replace_file = os.replace

    def refuse_the_new(source: Path, target: Path) -> None:
        if target == old.folder and not str(source).endswith("-old"):
            raise PermissionError(errno.EACCES, "in use")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse_the_new)
        with pytest.raises(CorpusError, match="in use"):
            prepare_dataset("hamlet.txt")
    assert open_dataset(old.folder).train.tobytes() == kept
    assert files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_another_process_that_was_faster_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    build, name = module.build_tokenizer, write("hamlet.txt", TEXT)

    def prepare_meanwhile(kind: str, text: str) -> module.Tokenizer:
        monkeypatch.setattr(module, "build_tokenizer", build)
        prepare_dataset(name)
        return build(kind, text)

    monkeypatch.setattr(module, "build_tokenizer", prepare_meanwhile)
    assert prepare_dataset(name).train_characters == len(TEXT) * 9 // 10
    assert files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_a_data_dir_that_is_a_file_is_an_error_of_one_line() -> None:
    write("data", "a file")
    with pytest.raises(CorpusError, match="cannot be written") as caught:
        prepare_dataset(write("hamlet.txt", TEXT))
    assert "\n" not in str(caught.value)
