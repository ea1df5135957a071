"""`quill demo` fits its time, overwrites only an earlier demo, and every command that it prints works."""

from __future__ import annotations

import shlex
import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest

import quill.data.corpus
from quill.cli import demo
from quill.data.corpus import find_corpus


@pytest.fixture
def small_demo(here, monkeypatch):
    """Make the demo tiny, on the first text that comes to hand."""
    text = "ROMEO: what light is this? " + (here / "my.txt").read_text(encoding="utf-8")
    (here / "my.txt").write_text(text, encoding="utf-8")
    corpus = replace(find_corpus("my.txt"), name="shakespeare", note="a text for the tests")
    monkeypatch.setattr(quill.data.corpus, "find_demo_corpus", lambda: corpus)
    small = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 4, "ngram_rows": 97}
    monkeypatch.setattr(demo, "ASKED", demo.ASKED | small)
    return here


@pytest.mark.long
def test_the_demo_trains_generates_evaluates_and_prints_commands_to_try(quill, small_demo, loss_plots):
    code, out, error = quill("demo", "--seconds=0.5", "--device=cpu")
    assert (code, error) == (0, "")
    for words in ("a text for the tests", "validation loss  ", "nats per token over the whole split",
                  "bits per character", "loss.png"):  # fmt: skip
        assert words in out
    assert {p.name for p in small_demo.iterdir()} == {"my.txt", "out-demo"}
    assert (small_demo / "out-demo" / "loss.png").is_file()
    named = [line.split("#")[0] for line in out.split("Try next:\n")[1].splitlines()]
    assert len(named) == 4 and named[-1].split() == ["quill", "serve", "out-demo"]
    for line in named[:-1]:
        program, *argv = shlex.split(line)
        assert program == "quill"
        quick = ["--max_iters=1", "--eval_iters=1", "--sample_tokens=0"] if argv[0] == "train" else []
        assert quill(*argv, *quick)[0] == 0
    command = [sys.executable, "-m", *shlex.split(named[-1]), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as server:
        try:
            assert server.stdout is not None
            with urllib.request.urlopen(server.stdout.readline().strip()) as page:
                assert "<title>Quill</title>" in page.read().decode()
        finally:
            server.terminate()


@pytest.mark.long
def test_the_demo_replaces_an_earlier_demo_and_nothing_else(quill, refused, small_demo, trained):
    assert quill("demo", "--seconds=0.3", "--device=cpu")[0] == 0
    assert quill("demo", "--seconds=0.3", "--device=cpu")[0] == 0
    assert "not a demo" in refused("demo", f"--out_dir={trained.out}")
