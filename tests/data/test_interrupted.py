"""Preparing that is interrupted, killed or watched: progress is reported, and nothing half-written stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quill.data import token_files
from quill.data.dataset import open_dataset, prepare_dataset
from quill.data.reading import formats

TEXT = "To be, or not to be: that is the question.\n" * 20

unix = pytest.mark.skipif(os.name == "nt", reason="no such signals and locks here")

# Prepares my.txt, and waits for a signal once it is encoding.
WAIT = """
import signal
from quill.data.dataset import prepare_dataset

def wait(what, share):
    if what == "encoding":
        print("encoding", flush=True)
        signal.pause()

try:
    prepare_dataset("my.txt", on_progress=wait)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_DATA_DIR", str(tmp_path / "nothing"))
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@contextmanager
def waiting() -> Iterator[subprocess.Popen[str]]:
    """Give a process that has begun to write tokens and waits for a signal."""
    process = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None and process.stdout.readline() == "encoding\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def drafts() -> list[Path]:
    return [*Path("data").rglob("*.draft")]


def test_progress_is_reported_of_each_phase_and_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:  # U16
    monkeypatch.setattr(formats, "_PIECE_BYTES", 100)
    monkeypatch.setattr(token_files, "_SLICE_CHARACTERS", 100)
    reports: list[tuple[str, float]] = []
    prepare_dataset("my.txt", on_progress=lambda what, share: reports.append((what, share)))
    opening: list[tuple[str, float]] = []
    prepare_dataset("my.txt", on_progress=lambda what, share: opening.append((what, share)))
    reports += [report for report in opening if report[0].startswith("checking")]
    phases = list(dict.fromkeys(what for what, _ in reports))
    assert phases == [
        "reading my.txt",
        "computing the SHA-256 of the text",
        "building the vocabulary",
        "encoding",
        "checking train.bin",
        "checking val.bin",
    ]
    for phase in phases:
        shares = [share for what, share in reports if what == phase]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
        assert shares[-1] == 1 or phase == "building the vocabulary"
    assert len([what for what, _ in reports if what == "reading my.txt"]) == -(-len(TEXT) // 100)


@pytest.mark.parametrize("phase", ["reading my.txt", "computing the SHA", "building the voc", "encoding", "checking"])
def test_an_interrupt_in_any_phase_leaves_the_old_dataset_and_no_draft(phase: str) -> None:
    before = prepare_dataset("my.txt")
    kept, folder = before.sha256, before.folder
    del before
    Path("my.txt").write_text("another " * 100, encoding="utf-8")

    def interrupt(what: str, share: float) -> None:
        if what.startswith(phase):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("my.txt", on_progress=interrupt)
    assert not drafts() and open_dataset(folder).sha256 == kept
    if phase == "checking":  # which is of tokens that were prepared before
        return
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("my.txt", data_dir="new", on_progress=interrupt, force=True)
    assert not [path for path in Path("new").rglob("*.draft")]


@unix
@pytest.mark.usefixtures("signals")
def test_ctrl_c_ends_a_process_that_encodes_and_leaves_nothing() -> None:
    with waiting() as process:
        assert drafts()
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.read() == "interrupted\n"
        assert process.wait() == 0
    assert not Path("data").exists() or not [*Path("data").iterdir()]


@unix
def test_the_draft_of_a_killed_process_is_removed_by_the_next_one() -> None:  # R3
    with waiting() as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(drafts()) == 1
    prepared = prepare_dataset("my.txt")
    assert prepared.train_characters == len(TEXT) * 9 // 10 and not drafts()


@unix
def test_the_draft_of_a_dead_process_is_removed_even_where_nothing_has_to_be_prepared() -> None:  # R3
    prepare_dataset("my.txt")
    (Path("data") / prepare_dataset("my.txt").name / ".char.0123abcd.draft").mkdir()
    prepare_dataset("my.txt")
    assert not drafts()


@unix
def test_the_draft_of_a_living_process_is_left_alone() -> None:  # R9
    with waiting():
        assert len(drafts()) == 1
        prepare_dataset("my.txt")
        assert len(drafts()) == 1


@unix
def test_three_processes_that_prepare_one_text_leave_it_whole() -> None:  # R9
    program = "from quill.data.dataset import prepare_dataset as p; print(p('my.txt').sha256)"
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)]
    outputs = {process.communicate()[0] for process in processes}
    assert outputs == {prepare_dataset("my.txt").sha256 + "\n"} and not drafts()
