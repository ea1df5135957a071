"""The examples: each runs as it is, shows what it says, and stays short."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(file.name for file in EXAMPLES.glob("*.py"))


def run(name: str, folder: Path, *arguments: str) -> str:
    """Run an example in a folder and return its standard output."""
    words = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_has_at_most_40_lines_and_says_what_it_shows(name: str) -> None:
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.long
def test_the_example_of_an_own_text_trains_on_the_given_files_and_generates(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The cat sat on the mat.\n" * 200, encoding="utf-8")
    (tmp_path / "two.txt").write_text("The dog ran to the door.\n" * 200, encoding="utf-8")
    shown = run("own_text.py", tmp_path, "one.txt", "two.txt")
    assert "finished after 100 steps" in shown
    assert re.search("cat sat|dog ran|the mat|the door", shown)
    assert (tmp_path / "out-own-text" / "last").is_file()


@pytest.mark.long
def test_the_example_of_an_own_block_trains_both_and_checks_its_guarantees(tmp_path: Path) -> None:
    losses = re.findall(r"(standard|gated): .* validation loss ([\d.]+)", run("own_block.py", tmp_path))
    assert [name for name, _ in losses] == ["standard", "gated"]
    assert all(float(loss) < 3.5 for _, loss in losses), "both have learned: ln 103 = 4.63 at the start"
    assert losses[0][1] != losses[1][1], "the block was really exchanged"


@pytest.mark.long
def test_the_example_of_an_own_tracker_writes_its_file_and_ends_the_run(tmp_path: Path) -> None:
    shown = run("own_tracker.py", tmp_path)
    assert "low enough after" in shown and "largest gradient norm" in shown
    header, *lines = (tmp_path / "losses.csv").read_text(encoding="utf-8").splitlines()
    assert header == "step,seconds,val_loss" and len(lines) >= 2
    assert float(lines[-1].split(",")[2]) < float(lines[0].split(",")[2])


@pytest.mark.long
def test_the_example_of_an_own_sampling_rule_generates_the_same_text_from_a_run_twice(tmp_path: Path) -> None:
    run("own_text.py", tmp_path)
    first = run("own_sampling_rule.py", tmp_path, "out-own-text")
    assert first.startswith("The ") and len(first) > 150
    assert first == run("own_sampling_rule.py", tmp_path, "out-own-text")


@pytest.mark.long
def test_fine_tuning_is_better_than_random_weights_in_as_many_steps(tmp_path: Path) -> None:
    shown = run("fine_tuning.py", tmp_path)
    losses = [float(loss) for loss in re.findall(r"(?:fine-tuned|from random weights): +([\d.]+)", shown)]
    assert len(losses) == 2 and losses[0] < losses[1] - 0.1


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="the kernel's event loop warns on Windows, and warnings are errors")
def test_the_notebook_trains_plots_generates_and_shows_attention(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    kernel = {"resources": {"metadata": {"path": str(tmp_path)}}, "kernel_name": "python3", "timeout": 300}
    nbclient.NotebookClient(notebook, **kernel).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    shown = "".join(output.get("text", "") for output in outputs)
    loss = re.search(r"([\d.]+) nats per token", shown)
    assert loss and float(loss[1]) < 2
    assert "temperature 0.3" in shown
