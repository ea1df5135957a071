"""Laws of `quill evaluate` and `quill info`: what they tell is what is there."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

import quill as library


def test_json_is_one_object_and_equals_the_library(quill, trained):
    code, out, error = quill("evaluate", trained.out, "--json", "--device=cpu")
    assert (code, error) == (0, "")
    facts = json.loads(out)
    model = library.load(trained.out, device="cpu")
    data = library.prepare_dataset(str(trained.folder / "my.txt"), data_dir=trained.folder / "data")
    expected = library.evaluate_split(model.model, data.val, data.tokenizer)
    assert list(facts) == ["val_loss", "bits_per_character", "tokens", "step"]
    assert facts["val_loss"] == pytest.approx(expected.loss)
    assert facts["bits_per_character"] == pytest.approx(expected.bits_per_character)
    assert model.checkpoint is not None
    assert (facts["tokens"], facts["step"]) == (len(data.val) - 1, model.checkpoint.step)


def test_evaluation_is_deterministic_and_blind_to_the_batch_size(quill, trained):
    results = [json.loads(quill("evaluate", trained.out, "--json", f"--batch_size={size}")[1]) for size in (1, 7, 64)]
    assert [r["val_loss"] for r in results] == pytest.approx([results[0]["val_loss"]] * 3)


def test_evaluation_in_words_names_the_split(quill, trained):
    assert "of the validation split" in quill("evaluate", f"--out_dir={trained.out}")[1]
    assert "of the training split" in quill("evaluate", f"--out_dir={trained.out}", "--split=train")[1]


def test_a_text_that_changed_is_not_measured_as_if_it_were_the_same(refused, here, trained):
    shutil.copytree(trained.out, here / "out")
    (here / "other.txt").write_text("abc\n" * 100, encoding="utf-8")
    config = here / "out" / "config.yaml"
    config.write_text("dataset: other.txt\ntokenizer: char\ndata_dir: data\n", encoding="utf-8")
    from quill.data.dataset import prepare_dataset

    prepare_dataset("other.txt")
    assert "has changed" in refused("evaluate", "out")


def test_a_checkpoint_without_its_run_cannot_be_measured(refused, here, trained):
    shutil.copytree(trained.out, here / "out")
    (here / "out" / "config.yaml").unlink()
    assert "config.yaml" in refused("evaluate", "out")


def test_info_tells_what_is_in_a_run(quill, trained):
    code, out, _ = quill("info", trained.out)
    model = library.load(trained.out, device="cpu").model
    assert code == 0
    assert f"{model.count_parameters():,} ({model.count_parameters(positions=False):,} without positions)" in out
    assert "n_embd=8" in out and "char: " in out and "best        step-" in out
    assert out.count("SHA-256 agrees") == 2


def test_info_also_takes_a_checkpoint_or_a_file(quill, trained):
    folder = next((trained.out / "checkpoints").glob("step-*"))
    for path in (folder, folder / "model.safetensors"):
        code, out, _ = quill("info", path)
        assert code == 0 and "SHA-256 agrees" in out and "n_embd=8" in out


def test_info_finds_an_altered_file(quill, here, trained):
    shutil.copytree(trained.out, here / "out")
    (state,) = (here / "out").glob("checkpoints/*/training.safetensors")
    state.write_bytes(state.read_bytes() + b"!")
    code, out, _ = quill("info", "out")
    assert code == 2
    assert "ALTERED" in out and out.count("SHA-256 agrees") == 1
    assert hashlib.sha256(state.read_bytes()).hexdigest() not in out
