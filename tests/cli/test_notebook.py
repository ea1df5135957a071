"""Quill in a real notebook: a kernel, cells, and what they show."""

from __future__ import annotations

import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

CELLS = [
    "!{sys.executable} -m quill demo --seconds=1 --device=cpu --out_dir=out-demo",
    # The same front door inside the kernel, whose streams are no terminals and no files either.
    "from quill.cli.main import main\n"
    "main(['train', '--config=debug', '--dataset=my.txt', '--device=cpu', '--max_iters=4', '--eval_interval=2'])",
    "import quill\n"
    "model = quill.load('out-debug', device='cpu')\n"
    "print(len(model.generate('KING', max_new_tokens=20, seed=1)))\n"
    "for piece in model.stream('KING', max_new_tokens=20, seed=1):\n"
    "    print(piece, end='')",
]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="the kernel's event loop warns on Windows, and warnings are errors")
def test_a_notebook_trains_and_generates(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # the demo then takes the text that Python carries
    cells = [nbformat.v4.new_code_cell(f"import sys\n{source}") for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    kernel = {"resources": {"metadata": {"path": str(here)}}, "kernel_name": "python3", "timeout": 300}
    nbclient.NotebookClient(notebook, **kernel).execute()
    streams = [[o for o in cell.outputs if o.output_type == "stream"] for cell in notebook.cells]
    shown = ["".join(o.text for o in outputs) for outputs in streams]
    assert "validation loss" in shown[0] and "Try next:" in shown[0]
    assert "finished at step 4" in shown[1] and "next: quill generate" in shown[1]
    length, written = "".join(o.text for o in streams[2] if o.name == "stdout").split("\n", 1)
    assert int(length) == 20 and len(written) == 20
    assert (here / "out-demo" / "loss.png").is_file()
    assert not any("\x1b[" in text for text in shown), "a notebook is no terminal"
