"""The scripts train.py, generate.py and v2.py run the commands that their docstrings print."""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

import pytest

from quill.process import SIGNALS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch, capsys, changed):
    """Run a script of the repository's root as `python NAME ARGV...` would; (exit code, standard output).

    A script is a program: it keeps its own handling of signals to its end.
    """

    def run(name: str, *argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [name, *changed(argv)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        return int(ended.value.code or 0), capsys.readouterr().out

    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_printed_commands_of_train_and_generate_work(script, here, tiny):
    smaller = [flag for flag in tiny if not flag.startswith(("--n_embd", "--n_head", "--n_layer"))]
    printed = ["--dataset=my.txt", "--n_embd=384", "--n_head=6", "--n_layer=6"]
    assert script("train.py", *printed, *smaller, "--max_iters=1", "--sample_tokens=0")[0] == 0
    code, out = script("generate.py", "--prompt=KING 1:", "--temperature=0.9", "--top_k=40", "--max_new_tokens=50")
    assert code == 0 and out.startswith("KING 1:") and len(out.rstrip("\n")) <= len("KING 1:") + 50


def test_v2_takes_the_same_flags(script, here, tiny):
    assert script("v2.py", "--dataset=my.txt", *tiny, "--max_iters=1")[0] == 0
    assert len((here / "generated_text.txt").read_text(encoding="utf-8")) == 500


@pytest.mark.parametrize("name", ["train.py", "generate.py", "v2.py"])
def test_every_script_prints_its_usage(script, name):
    code, out = script(name, "--help")
    assert code == 0 and out.startswith(f"usage: quill {name[:-3]} ")
