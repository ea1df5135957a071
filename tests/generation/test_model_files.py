"""A model is saved, loaded, copied and sent to another process whole."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import quill
from quill.checkpoints import model_file
from quill.checkpoints.run_folder import save_checkpoint
from quill.errors import CheckpointError, ConfigError
from quill.generation.language_model import LanguageModel
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.tokenizers.char import CharTokenizer

CHARACTERS = CharTokenizer.from_text("abcdefgh é漢\n")
SHAPE: dict[str, Any] = {
    "vocab_size": CHARACTERS.vocab_size, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16,
}  # fmt: skip
CONFIGS = [GPTConfig(**SHAPE), ModernConfig(**SHAPE, ngram_rows=97)]


def tiny(config: ModelConfig = CONFIGS[0], engine: str = "torch") -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return LanguageModel(model, CHARACTERS, engine=engine)


def written(model: LanguageModel) -> str:
    return model.generate("bad", max_new_tokens=40, seed=3)


@pytest.mark.parametrize("config", CONFIGS, ids=["classic", "modern"])
@pytest.mark.parametrize("path", ["folder", "a/b/folder", "lone.safetensors", "a/lone.safetensors"])
def test_a_saved_model_is_loaded_again(config: ModelConfig, path: str, tmp_path: Path) -> None:
    model = tiny(config)
    file = quill.save(model, tmp_path / path)
    assert file == (tmp_path / path if path.endswith(".safetensors") else tmp_path / path / "model.safetensors")
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    for where in (tmp_path / path, str(file)):
        loaded = quill.load(where, device="cpu", engine="torch")
        assert written(loaded) == written(model) and loaded.tokenizer == CHARACTERS and loaded.config == config


def test_a_model_loaded_from_a_run_keeps_its_step_loss_and_text(tmp_path: Path) -> None:
    model, about = tiny(), {"step": 7, "val_loss": 1.5, "best": True, "text_sha256": "0" * 64}
    save_checkpoint(tmp_path / "out", model.model, CHARACTERS, training_tensors={}, training_metadata={}, **about)
    quill.save(quill.load(tmp_path / "out", device="cpu"), tmp_path / "alone")
    checkpoint = quill.load(tmp_path / "alone", device="cpu").checkpoint
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.val_loss, checkpoint.text_sha256) == (7, 1.5, "0" * 64)
    changed = quill.load(tmp_path / "out", device="cpu")
    changed.model.get_parameter("final_norm.weight").data.mul_(2)
    quill.save(changed, tmp_path / "changed")
    checkpoint = quill.load(tmp_path / "changed", device="cpu").checkpoint
    assert checkpoint is not None and checkpoint.val_loss is None  # nobody has measured this one
    with pytest.raises(CheckpointError, match="holds a run"):
        quill.save(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is a checkpoint of a run"):
        quill.save(model, tmp_path / "out" / "checkpoints" / "step-000007")
    assert quill.load(tmp_path / "out").checkpoint is not None  # as it was


@pytest.mark.parametrize("call", ["write_tensor_file", "replace", "sync_folder"])
def test_a_save_that_fails_leaves_the_file_before_it(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tiny(CONFIGS[0]), tiny(CONFIGS[1])
    file = quill.save(first, tmp_path / "model")
    before = file.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if call == "replace" else model_file, call, fail)
    with pytest.raises(CheckpointError, match=r"cannot save .*: No space left on device"):
        quill.save(second, tmp_path / "model")
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == before or call == "sync_folder"  # then the new one is whole already
    monkeypatch.undo()
    quill.load(file)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = tiny()
    model.model.get_parameter("final_norm.weight").data[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"final_norm\.weight has values that are not finite"):
        quill.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [5, {}, b"x", "", None, 1.5, True])
def test_a_value_that_is_no_path_is_refused(path: Any) -> None:
    # W14: raw TypeErrors
    with pytest.raises(ConfigError, match=r"^path="):
        quill.save(tiny(), path)
    if path is not None:  # which means the newest run here
        with pytest.raises(ConfigError, match=r"^path="):
            quill.load(path)


def test_only_a_language_model_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model="):
        quill.save(tiny().model, tmp_path / "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["once upon a time " * 5000, "a\0b", "\ud800" * 9, "line\n" * 3000])
def test_a_text_given_as_a_path_is_cut_in_the_message(path: str) -> None:
    # U13: 35,905 characters were repeated
    for action in (quill.load, lambda path: quill.save(tiny(), path)):
        with pytest.raises(CheckpointError) as caught:
            action(path)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("model", (None, CHARACTERS), {}), ("tokenizer", (tiny().model, None), {}),
        ("tokenizer", (tiny().model, "char"), {}), ("on_status", (tiny().model, CHARACTERS), {"on_status": 5}),
        ("engine", (tiny().model, CHARACTERS), {"engine": []}),
        ("quantization", (tiny().model, CHARACTERS), {"quantization": {}}),
    ],
)  # fmt: skip
def test_arguments_that_make_no_language_model_are_refused_by_name(name: str, arguments: Any, options: Any) -> None:
    # W14
    with pytest.raises(ConfigError, match=f"^{name}="):
        LanguageModel(*arguments, **options)


@pytest.mark.parametrize(
    "option", [{"device": 5}, {"device": torch.device("cpu")}, {"checkpoint": 5}, {"engine": 5}, {"quantization": []}]
)
def test_an_option_of_load_of_the_wrong_type_is_refused_by_name(option: Any) -> None:
    # W14
    with pytest.raises(ConfigError, match=f"^{next(iter(option))}="):
        quill.load("nowhere", **option)


def test_a_device_file_is_refused_as_a_model() -> None:
    # W14: "/dev/null does not exist"
    with pytest.raises(CheckpointError, match="/dev/null is not a file"):
        quill.load("/dev/null")


@pytest.mark.parametrize(
    ("engine", "used", "loaded"),
    [
        pytest.param(engine, used, loaded, marks=[] if used == loaded else [pytest.mark.long])
        for engine in ("torch", "numba")
        for used in (False, True)
        for loaded in (False, True)
    ],
)
def test_a_copy_of_a_model_is_complete_and_independent(engine: str, used: bool, loaded: bool, tmp_path: Path) -> None:
    # W10: a copy wrote with the original's weights, and after use copying failed
    model = tiny(engine=engine)
    if loaded:
        quill.save(model, tmp_path / "m")
        model = quill.load(tmp_path / "m", device="cpu", engine=engine)
    expected = written(tiny())
    if used:
        assert written(model) == expected
        model.logits("abc")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert written(copied) == expected
        changed = copy.deepcopy(copied)
        with torch.no_grad():
            for parameter in changed.model.parameters():
                parameter.mul_(-1)
        texts = {written(each) for each in (changed, copy.deepcopy(changed), pickle.loads(pickle.dumps(changed)))}
        assert len(texts) == 1 and texts != {expected}
        assert written(copied) == written(model) == expected


@pytest.mark.long
def test_a_model_can_be_sent_to_another_process() -> None:
    # W10
    model = tiny()
    expected = written(model)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        assert elsewhere.submit(model.generate, "bad", max_new_tokens=40, seed=3).result() == expected


def test_a_model_shows_its_size_tokenizer_and_file(tmp_path: Path) -> None:
    # U14: <… object at 0x…>
    model = tiny()
    count = model.model.count_parameters()
    assert repr(model) == (
        f"LanguageModel(classic GPT, {count:,} parameters, 1 layers of width 16, context 16, char tokenizer of "
        "12 tokens, engine torch, not loaded from a file)"
    )
    quill.save(model, tmp_path / "m")
    shown = repr(quill.load(tmp_path / "m", device="cpu", quantization="int8"))
    assert f"{count:,} parameters" in shown and "engine auto, int8" in shown
    assert f"loaded from {tmp_path / 'm'}" in shown


def test_old_keywords_of_load_work(tmp_path: Path) -> None:
    quill.save(tiny(), tmp_path / "m")
    with pytest.warns(FutureWarning, match="weights= is now called quantization="):
        assert quill.load(tmp_path / "m", device="cpu", weights="int8").quantization == "int8"
    with pytest.warns(FutureWarning, match="which= is now called checkpoint="):
        quill.load(tmp_path / "m", device="cpu", which="last")


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # T8
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quill.save(tiny(), "~/m") == tmp_path / "m" / "model.safetensors"
    assert written(quill.load("~/m", device="cpu", engine="torch")) == written(tiny())
