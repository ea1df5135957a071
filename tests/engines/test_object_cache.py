"""Compiled code is stored for the next process, which imports neither PyTorch nor Numba; damaged code is never run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quill.checkpoints.run_folder import save_checkpoint
from quill.engines.make import arrays_of, make_engine
from quill.engines.numba_engine import NumbaEngine
from quill.engines.numba_step import object_cache as code
from quill.generation.language_model import LanguageModel
from quill.model.build import build_model
from quill.model.config import GPTConfig
from quill.tokenizers.byte import ByteTokenizer

CONFIG = GPTConfig(vocab_size=256, block_size=16, n_layer=1, n_head=1, n_embd=8)
WRITE = """
import sys
import quill
print(repr(quill.load(sys.argv[1], device="cpu", engine="numba").generate("a", max_new_tokens=5, seed=1)))
print(sorted({"torch", "numba"} & set(sys.modules)))
"""


def test_the_next_process_generates_without_importing_pytorch_or_numba(tmp_path: Path) -> None:
    model, tokenizer = build_model(CONFIG), ByteTokenizer()
    save_checkpoint(
        tmp_path, model, tokenizer, step=1, val_loss=None, best=True, training_tensors={}, training_metadata={}
    )
    text = LanguageModel(model, tokenizer, engine="numba").generate("a", max_new_tokens=5, seed=1)
    process = subprocess.run([sys.executable, "-c", WRITE, tmp_path], capture_output=True, text=True, check=True)
    assert process.stdout == f"{text!r}\n[]\n"


@pytest.mark.parametrize("damage", ["cut short", "longer", "one bit", "another digest", "zeros", "empty", "gone"])
def test_damaged_compiled_code_is_compiled_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_engine(build_model(CONFIG), "numba")  # it is stored by now
    good = (code.code_folder() / "float32.o").read_bytes()
    monkeypatch.setattr(code, "code_folder", lambda: tmp_path)
    monkeypatch.setattr(code, "_compile", lambda example: good.partition(b"\n")[2])
    file = tmp_path / "float32.o"
    if damage != "gone":
        file.write_bytes(
            {
                "cut short": good[:-1], "longer": good + b"\0", "one bit": good[:-1] + bytes([good[-1] ^ 1]),
                "another digest": b"0" * 64 + good[64:], "zeros": bytes(len(good)), "empty": b"",
            }[damage]
        )  # fmt: skip
    said: list[str] = []
    for expected in (1, 1):  # the second time it is there
        NumbaEngine(CONFIG, arrays_of(build_model(CONFIG)), on_status=said.append)
        assert len(said) == expected
    assert file.read_bytes() == good
    assert os.listdir(tmp_path) == ["float32.o"]


def test_compiled_code_that_cannot_be_stored_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_engine(build_model(CONFIG), "numba")
    good = (code.code_folder() / "float32.o").read_bytes()
    (tmp_path / "a file").touch()
    monkeypatch.setattr(code, "code_folder", lambda: tmp_path / "a file")
    monkeypatch.setattr(code, "_compile", lambda example: good.partition(b"\n")[2])
    engine = NumbaEngine(CONFIG, arrays_of(build_model(CONFIG)))
    assert engine.logits([1, 2]).shape == (2, 256)
