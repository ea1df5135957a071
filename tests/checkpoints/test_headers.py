"""What the header of a weights file says is checked before anything is built from it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from quill.checkpoints import format
from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import (
    find_checkpoint,
    load_checkpoint,
)
from quill.model.build import build_model
from quill.model.config import ModernConfig

MODERN = ModernConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4, ngram=2)

HEADERS: dict[str, Callable[[dict], object]] = {
    "another format": lambda h: h.update(format=3),
    "a format that is True": lambda h: h.update(format=True),
    "another architecture": lambda h: h.update(architecture="rnn"),
    "an architecture that is a list": lambda h: h.update(architecture=[]),
    "no architecture": lambda h: h.pop("architecture"),
    "an extra entry": lambda h: h.update(color="red"),
    "a step of text": lambda h: h.update(step="3"),
    "a step of half": lambda h: h.update(step=3.5),
    "a negative step": lambda h: h.update(step=-1),
    "an enormous step": lambda h: h.update(step=10**400),
    "a step that is True": lambda h: h.update(step=True),
    "a loss of text": lambda h: h.update(val_loss="2"),
    "a loss that is a list": lambda h: h.update(val_loss=[2.0]),
    "a loss that is NaN": lambda h: h.update(val_loss=float("nan")),
    "a loss that is infinite": lambda h: h.update(val_loss=float("inf")),
    "an enormous loss": lambda h: h.update(val_loss=10**400),
    "a text that is no SHA-256": lambda h: h.update(text_sha256="abc"),
    "a model that is a list": lambda h: h.update(model=[]),
    "a model without a size": lambda h: h["model"].pop("n_head"),
    "a model with an extra size": lambda h: h["model"].update(n_color=1),
    "a million layers": lambda h: h["model"].update(n_layer=10**6),
    "4000 layers": lambda h: h["model"].update(n_layer=4000),
    "a billion layers": lambda h: h["model"].update(n_layer=10**9),
    "no layers": lambda h: h["model"].update(n_layer=0),
    "layers of text": lambda h: h["model"].update(n_layer="1"),
    "an enormous width": lambda h: h["model"].update(n_embd=10**400),
    "a large width": lambda h: h["model"].update(n_embd=65536),
    "an enormous dropout": lambda h: h["model"].update(dropout=10**400),
    "an enormous vocabulary": lambda h: h["model"].update(vocab_size=10**18),
    "a large vocabulary": lambda h: h["model"].update(vocab_size=1 << 24),
    "a large context": lambda h: h["model"].update(block_size=1 << 20),
    "no tokenizer": lambda h: h.update(tokenizer=None),
    "an empty tokenizer": lambda h: h.update(tokenizer={}),
    "another tokenizer": lambda h: h.update(tokenizer={"kind": "?"}),
    "a tokenizer of numbers": lambda h: h.update(tokenizer={"kind": "char", "characters": 5}),
    "a tokenizer with a letter twice": lambda h: h.update(tokenizer={"kind": "char", "characters": "aba"}),
    "a list": lambda h: [],
    "null": lambda h: "null",
}  # fmt: skip
MODERN_HEADERS: dict[str, Callable[[dict], object]] = {
    "n-grams of a billion": lambda h: h["model"].update(ngram=10**9),
    "n-grams of 30": lambda h: h["model"].update(ngram=30),
    "a billion rows": lambda h: h["model"].update(ngram_rows=10**9),
    "a billion heads": lambda h: h["model"].update(n_kv_head=10**9),
    "an enormous cap": lambda h: h["model"].update(logit_softcap=10**400),
    "a context of a billion": lambda h: h["model"].update(block_size=10**9),
}


def with_header(file: Path, change: Callable[[dict], object]) -> Path:
    """Return a copy of a weights file, alone in a folder, whose header was changed."""
    tensors, metadata = read_tensors(file)
    changed = change(metadata)
    (file.parent.parent / "alone").mkdir(exist_ok=True)
    alone = file.parent.parent / "alone" / "model.safetensors"
    alone.write_bytes(safetensors.torch.save(tensors, {"quill": json.dumps(metadata if changed is None else changed)}))
    return alone


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_weights_header_with_an_impossible_value_is_refused(
    change: Callable, run: Path, refused: Callable[..., str]
) -> None:  # R7, R17
    file = with_header(find_checkpoint(run) / "model.safetensors", lambda header: None)
    assert load_checkpoint(file).step == 3, "the file itself is good"
    refused(
        lambda: load_checkpoint(with_header(find_checkpoint(run) / "model.safetensors", change)), "model.safetensors"
    )


@pytest.mark.parametrize("change", MODERN_HEADERS.values(), ids=MODERN_HEADERS)
def test_a_modern_header_with_an_impossible_value_is_refused(
    change: Callable, tmp_path: Path, save_step: Callable[..., Path], refused: Callable[..., str]
) -> None:  # R7
    file = save_step(tmp_path / "out", 3, model=build_model(MODERN)) / "model.safetensors"
    refused(lambda: load_checkpoint(with_header(file, change)), r"model\.safetensors")


@pytest.mark.parametrize("sizes", [{"n_layer": 4000}, {"ngram": 30}, {"n_embd": 65536}])
def test_a_model_that_its_file_cannot_hold_is_not_built_to_find_out(
    sizes: dict,
    tmp_path: Path,
    save_step: Callable[..., Path],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # R7, R17
    file = save_step(tmp_path / "out", 3, model=build_model(replace(MODERN, n_embd=128))) / "model.safetensors"
    alone = with_header(file, lambda header: header["model"].update(sizes))
    monkeypatch.setattr(format, "_shapes_of_model", lambda config: pytest.fail(f"a model was built of {config}"))
    if "n_embd" not in sizes:  # then even the list of its weights would be long
        monkeypatch.setattr(format, "weight_shapes", lambda config: pytest.fail(f"weights were listed of {config}"))
    refused(lambda: load_checkpoint(alone), "does not fit its own configuration")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_other_precisions_load(dtype: torch.dtype, run: Path) -> None:  # W9
    file = find_checkpoint(run) / "model.safetensors"
    tensors, metadata = read_tensors(file)
    alone = run / "other.safetensors"
    alone.write_bytes(
        safetensors.torch.save({n: t.to(dtype) for n, t in tensors.items()}, {"quill": json.dumps(metadata)})
    )
    loaded = load_checkpoint(alone)
    for name, weight in loaded.weights.items():  # which every engine reads
        assert weight.dtype == np.float32 and np.array_equal(weight, tensors[name].to(dtype).float().numpy())
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, tensors[name].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool], ids=str)
def test_integer_weights_are_refused(dtype: torch.dtype, run: Path, refused: Callable[..., str]) -> None:  # R7
    tensors, metadata = read_tensors(find_checkpoint(run) / "model.safetensors")
    alone = run / "other.safetensors"
    alone.write_bytes(
        safetensors.torch.save({n: t.to(dtype) for n, t in tensors.items()}, {"quill": json.dumps(metadata)})
    )
    refused(lambda: load_checkpoint(alone), "not weights")


def test_reading_weights_as_arrays_needs_no_pytorch(run: Path) -> None:
    code = (
        f"import sys; from quill.checkpoints.run_folder import load_checkpoint; load_checkpoint({str(run)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
