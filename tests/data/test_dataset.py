"""Prepared tokens: both splits are the text, damage is noticed, and a folder is whole or not there."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.data import dataset as module
from quill.data import token_files
from quill.data.corpus import Corpus, CorpusNotFoundError
from quill.data.dataset import Dataset, find_prepared, open_dataset, prepare_dataset
from quill.errors import ConfigError, CorpusError, TokenizerError
from quill.tokenizers.byte import ByteTokenizer
from quill.tokenizers.char import CharTokenizer

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
    monkeypatch.setattr(token_files, "_SLICE_CHARACTERS", 7)
    sliced = prepare_dataset("hamlet.txt", tokenizer="byte", data_dir="again")
    assert np.array_equal(whole.train, sliced.train) and np.array_equal(whole.val, sliced.val)


def test_an_opened_dataset_equals_the_prepared_one() -> None:
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
    monkeypatch.setattr(module, "write_tokens", None)  # would fail if it were called
    prepare_dataset("hamlet.txt")


def test_a_changed_text_is_prepared_again() -> None:
    prepare_dataset(write("hamlet.txt", TEXT))
    prepared = prepare_dataset(write("hamlet.txt", "another " * 100))
    assert prepared.tokenizer.decode(prepared.train).startswith("another")
    assert files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_force_rewrites_what_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_dataset(write("hamlet.txt", TEXT))
    before = (prepared.folder / "train.bin").stat().st_ino
    del prepared
    assert (prepare_dataset("hamlet.txt", force=True).folder / "train.bin").stat().st_ino != before


def test_prepared_tokens_are_used_when_their_text_is_gone() -> None:
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


def test_a_corpus_in_memory_is_prepared_without_a_file() -> None:
    corpus = Corpus("mine", "memory", TEXT, "0" * 64, "a text from memory")
    prepared = prepare_dataset("mine", corpus=corpus)
    assert prepared.folder == Path("data/mine/char") and prepared.note == "a text from memory"
    assert prepare_dataset("mine", corpus=corpus).title == prepared.title == "mine"
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


# ---- identity


def test_the_identity_of_a_dataset_is_the_sha256_of_its_text() -> None:  # R13, T1
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert prepare_dataset(write("hamlet.txt", TEXT)).sha256 == digest
    assert prepare_dataset("hamlet.txt", tokenizer="byte").sha256 == digest
    assert prepare_dataset(text=TEXT).sha256 == digest
    Path("windows.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert prepare_dataset("windows.txt").sha256 == digest


def test_the_same_text_has_the_same_identity_in_another_folder_and_another_text_does_not() -> None:  # T1, T2
    Path("moved").mkdir()
    first = prepare_dataset(write("hamlet.txt", TEXT))
    moved = prepare_dataset(write("moved/hamlet.txt", TEXT), data_dir="moved/data")
    assert moved.name != first.name and moved.sha256 == first.sha256
    exchanged = TEXT[len(TEXT) // 2 :] + TEXT[: len(TEXT) // 2]
    changed = prepare_dataset(write("hamlet.txt", exchanged))
    assert changed.tokenizer == moved.tokenizer and changed.sha256 != moved.sha256


def test_a_dataset_opened_without_its_text_still_knows_which_text_it_was() -> None:  # T2
    prepared = prepare_dataset(write("hamlet.txt", TEXT))
    Path("hamlet.txt").unlink()
    assert open_dataset(prepared.folder).sha256 == prepare_dataset("hamlet.txt").sha256 == prepared.sha256


def test_prepared_tokens_are_found_by_the_digest_of_their_text() -> None:  # T2
    prepared = prepare_dataset(write("hamlet.txt", TEXT))
    prepare_dataset(write("other.txt", "another " * 100))
    found = find_prepared(prepared.sha256, "char", "data")
    assert found and found.folder == prepared.folder
    assert find_prepared(prepared.sha256, "byte", "data") is None
    assert find_prepared("0" * 64, "char", "data") is None and find_prepared("0" * 64, "char", "nowhere") is None
    assert prepare_dataset("gone/hamlet.txt", sha256=prepared.sha256).folder == prepared.folder
    with pytest.raises(CorpusNotFoundError):
        prepare_dataset("gone/hamlet.txt", sha256="0" * 64)


def test_a_dataset_has_the_name_that_the_user_gave_it() -> None:  # U10
    assert prepare_dataset(write("hamlet.txt", TEXT)).title == "hamlet.txt"
    assert prepare_dataset("./hamlet.txt").title == "./hamlet.txt"
    assert prepare_dataset("pydoc").title == "pydoc"
    assert (
        prepare_dataset(["hamlet.txt", write("b.txt", TEXT), write("c.txt", "more")]).title == "hamlet.txt and 2 more"
    )
    assert prepare_dataset(text=TEXT).title == "text"
    with pytest.raises(CorpusError, match=r"^tiny\.txt has 1 character"):
        prepare_dataset(write("tiny.txt", "x"))


# ---- several files, and text that is in no file


def test_several_paths_are_one_dataset_in_the_given_order() -> None:  # U1
    names = [write("b.txt", "first\n" * 9), write("a.txt", "second\n" * 9)]
    prepared = prepare_dataset(names)
    text = prepared.tokenizer.decode(prepared.train) + prepared.tokenizer.decode(prepared.val)
    assert text == ("first\n" * 9).strip() + "\n\n" + "second\n" * 9
    assert prepare_dataset(tuple(map(Path, names))).folder == prepared.folder
    assert prepare_dataset(names[::-1]).folder != prepared.folder
    assert prepare_dataset(names[:1]).folder == prepare_dataset("b.txt").folder


def test_a_text_is_prepared_without_a_file_and_found_again_by_its_name() -> None:  # U13
    prepared = prepare_dataset(text=TEXT)
    assert prepared.tokenizer.decode(prepared.train) == TEXT[: len(TEXT) * 9 // 10]
    assert prepare_dataset(text=TEXT + "more").folder != prepared.folder
    again = prepare_dataset(prepared.name)
    assert again.folder == prepared.folder and again.sha256 == prepared.sha256


@pytest.mark.parametrize("text", ["", " \n\t", b"bytes", 5])
def test_a_text_that_is_empty_or_no_str_is_refused(text: Any) -> None:
    with pytest.raises(CorpusError, match=r"is empty|white space|must be a str"):
        prepare_dataset(text=text)


def test_half_a_character_in_a_text_is_named_with_its_position() -> None:
    with pytest.raises(CorpusError, match=r"half a character .*ud83d.* at position 2"):
        prepare_dataset(text="ab\ud83d")


def test_neither_a_dataset_nor_a_text_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs a dataset"):
        prepare_dataset()


# ---- a tokenizer in place of its name


@pytest.mark.parametrize("data_dir", [5, None, b"data", ["data"]])
def test_a_value_that_is_no_folder_is_refused_by_name(data_dir: Any) -> None:  # W14
    with pytest.raises(ConfigError, match=r"^data_dir="):
        prepare_dataset(text=TEXT, data_dir=data_dir)


def test_a_tokenizer_is_accepted_where_its_name_is() -> None:  # U14
    own = CharTokenizer("zyx").extend(TEXT)
    prepared = prepare_dataset(write("hamlet.txt", TEXT), tokenizer=own)
    assert prepared.tokenizer == own and prepared.tokenizer.decode(prepared.train) == TEXT[: len(TEXT) * 9 // 10]
    assert prepared.folder != prepare_dataset("hamlet.txt").folder
    assert prepare_dataset("hamlet.txt", tokenizer=own).folder == prepared.folder
    by_name = prepare_dataset("hamlet.txt", tokenizer="byte")
    assert prepare_dataset("hamlet.txt", tokenizer=ByteTokenizer()).folder == by_name.folder


def test_a_tokenizer_that_lacks_a_character_of_the_text_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(TokenizerError, match="'T' at position 0"):
        prepare_dataset(write("hamlet.txt", TEXT), tokenizer=CharTokenizer("abc"))
    assert not Path("data").exists() or not [*Path("data").iterdir()]


# ---- long enough


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 400), st.integers(1, 60), st.sampled_from(["char", "byte"]))
def test_advice_for_a_short_text_works_for_both_splits(length: int, block_size: int, kind: str) -> None:  # U9, U19
    with TemporaryDirectory() as folder:
        prepared = prepare_dataset(text="ab" * (length // 2) + "é" * (length % 2), tokenizer=kind, data_dir=folder)
        try:
            prepared.require_window(block_size)
        except CorpusError as error:
            message = str(error)
        else:
            assert min(len(prepared.train), len(prepared.val)) > block_size
            return
        assert min(len(prepared.train), len(prepared.val)) <= block_size and message.startswith(
            ("the v", "the t", "text")
        )
        if shorter := re.search(r"use block_size=(\d+) or less", message):
            prepared.require_window(int(shorter[1]))
            with pytest.raises(CorpusError):
                prepared.require_window(int(shorter[1]) + 1)
        else:
            assert prepared.longest_block_size == 0 and "block_size=0" not in message
        (longer,) = re.findall(r"text of at least ([\d,]+) characters", message)
        prepare_dataset(text="x" * int(longer.replace(",", "")), data_dir=folder).require_window(block_size)


def test_the_error_for_ten_bytes_has_one_advice_that_works() -> None:  # U19
    with pytest.raises(CorpusError) as caught:
        prepare_dataset(write("ten.txt", "0123456789")).require_window(8)
    assert str(caught.value) == (
        "ten.txt is too short to train on (the validation split of ten.txt has 1 token): "
        "use a text of at least 81 characters for block_size=8"
    )


# ---- damage


def facts(dataset: Dataset) -> dict[str, Any]:
    return {name: value for name, value in vars(dataset).items() if name not in ("train", "val")}


def test_every_changed_byte_of_the_description_is_noticed_and_prepared_again() -> None:  # R14
    folder = prepare_dataset(write("hamlet.txt", TEXT)).folder
    path, good = folder / "dataset.json", open_dataset(folder)
    raw = path.read_bytes()
    for position in range(len(raw)):
        bits = (0x01, 0x20, 0x80)[position % 3]
        path.write_bytes(raw[:position] + bytes([raw[position] ^ bits]) + raw[position + 1 :])
        try:
            opened = open_dataset(folder)
        except CorpusError as error:
            assert "\n" not in str(error)
        else:  # other white space between the fields, or a capital in a \\u escape: the same description
            assert facts(opened) == facts(good)
    path.write_bytes(raw.replace(b"Tab", b"Tba"))
    assert raw != path.read_bytes(), "the alphabet was not found"
    with pytest.raises(CorpusError, match="checksum"):
        open_dataset(folder)
    assert prepare_dataset("hamlet.txt").tokenizer == good.tokenizer


def test_a_description_that_is_nested_too_deeply_counts_as_damaged() -> None:
    folder = prepare_dataset(write("hamlet.txt", TEXT)).folder
    (folder / "dataset.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CorpusError, match="damaged"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "dataset.json"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "lengthen"])
def test_a_damaged_dataset_is_refused_and_prepared_again_from_its_text(name: str, harm: str) -> None:
    folder = prepare_dataset(write("hamlet.txt", TEXT)).folder
    path, raw = folder / name, (folder / name).read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": raw[:-3], "flip": b"\xff" + raw[1:], "lengthen": raw + b"}"}[harm])
    with pytest.raises(CorpusError, match=r"damaged|not a prepared dataset") as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)
    assert prepare_dataset("hamlet.txt").train_characters == len(TEXT) * 9 // 10


@pytest.mark.parametrize("about", ["[]", "{}", "3", '{"format": 2, "tokenizer": {"kind": "word"}}'])
def test_a_description_without_its_fields_counts_as_damaged(about: str) -> None:
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
        with pytest.raises(CorpusError, match=r"no space left .*choose a data_dir"):
            prepare_dataset("hamlet.txt")
        with pytest.raises(CorpusError, match="no space left"):
            prepare_dataset(write("other.txt", TEXT))
    folders = [path for path in Path("data").rglob("*") if path.is_dir()]
    assert {path.name for path in folders[1:]} == {"char"} and len(folders) == 2
    assert open_dataset(folders[1]).train.tobytes() == old


def test_a_limit_on_file_sizes_is_reported_as_no_space_left() -> None:
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
    replace_file, replacements = os.replace, []

    def refuse_the_new(source: Path, target: Path) -> None:
        if target == old.folder:
            replacements.append(source)
            if len(replacements) == 1:
                raise PermissionError(errno.EACCES, "in use")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse_the_new)
        with pytest.raises(CorpusError, match="in use"):
            prepare_dataset("hamlet.txt")
    assert len(replacements) == 2 and open_dataset(old.folder).train.tobytes() == kept
    assert files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_a_dataset_that_another_process_prepared_first_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    build, name = module.build_tokenizer, write("hamlet.txt", TEXT)

    def prepare_meanwhile(kind: str, text: str, **rest: Any) -> module.Tokenizer:
        monkeypatch.setattr(module, "build_tokenizer", build)
        prepare_dataset(name)
        return build(kind, text, **rest)

    monkeypatch.setattr(module, "build_tokenizer", prepare_meanwhile)
    assert prepare_dataset(name).train_characters == len(TEXT) * 9 // 10
    assert files_below("data") == {"train.bin", "val.bin", "dataset.json"}


def test_a_data_dir_that_is_a_file_is_an_error_of_one_line() -> None:
    write("data", "a file")
    with pytest.raises(CorpusError, match="cannot be written") as caught:
        prepare_dataset(write("hamlet.txt", TEXT))
    assert "\n" not in str(caught.value)
