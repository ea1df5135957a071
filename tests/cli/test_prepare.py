"""`quill prepare`: what it says, several texts at once, and signals in the middle of its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quill.data.dataset import prepare_dataset

# Runs `quill prepare`, which waits for a signal once it is encoding.
WAIT = """
import signal, sys
from quill.tracking.phase_display import PhaseDisplay

def wait(self, what, share):
    if what == "encoding":
        print("ready", flush=True)
        signal.pause()

PhaseDisplay.__call__ = wait
from quill.__main__ import main
sys.exit(main(["prepare", "my.txt"]))
"""


def test_prepare_says_what_it_wrote_and_where(quill, here):
    code, out, error = quill("prepare", "my.txt")
    assert (code, error) == (0, "") and out.startswith("corpus      my.txt, ")
    folder = prepare_dataset("my.txt").folder
    assert out.rstrip().endswith(f"files       {folder}") and (here / folder / "train.bin").is_file()


def test_several_words_are_one_text(quill, here):  # U1
    (here / "other.md").write_text("another text\n" * 20, encoding="utf-8")
    code, out, _ = quill("prepare", "other.md", "my.txt")
    assert code == 0 and out.startswith("corpus      other.md and 1 more, ") and "in 2 files" in out
    prepared = prepare_dataset(["other.md", "my.txt"])
    assert str(prepared.folder) in out and prepared.tokenizer.decode(prepared.train).startswith("another text\n")


def test_prepare_says_which_files_of_a_folder_it_skips(quill, here):  # T10
    (here / "photo.jpg").write_bytes(b"\xff")
    assert "skipped 1 .jpg" in quill("prepare", ".")[1].splitlines()[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_prepare_refuses_a_pipe_without_waiting(refused, here):  # R17
    os.mkfifo("pipe.txt")
    assert "pipe.txt is a pipe, not a file" in refused("prepare", "pipe.txt")


def test_a_data_folder_may_be_below_the_home_folder(quill, here, monkeypatch):  # T8
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(here))
    assert quill("prepare", "my.txt", "--data_dir=~/tokens")[0] == 0 and (here / "tokens").is_dir()


def test_a_long_phase_is_shown_on_standard_error(quill, here, monkeypatch):  # U16
    from quill.tracking import phase_display

    monkeypatch.setattr(phase_display, "SECONDS_BETWEEN_LINES", 0.0)
    code, out, error = quill("prepare", "my.txt")
    assert code == 0 and out.startswith("corpus")
    assert "quill: reading my.txt, 100%\n" in error and "quill: encoding, 90%\n" in error


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
@pytest.mark.usefixtures("signals")
def test_a_signal_ends_prepare_with_one_line_and_leaves_no_draft(name, code, word, here, environment):  # R16
    command = [sys.executable, "-c", WAIT]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert [*Path("data").rglob("*.draft")]
        process.send_signal(getattr(signal, name))
        _, error = process.communicate()
    assert (process.returncode, error) == (code, f"quill prepare: {word}\n")
    assert not [*Path("data").rglob("*")]
