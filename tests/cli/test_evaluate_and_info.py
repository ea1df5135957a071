"""`quill evaluate` and `quill info` report what is in a run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

import quill as library
from quill.cli import info


def test_the_json_of_evaluate_is_one_object_and_equals_the_library(quill, trained):
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


def test_evaluation_is_deterministic_and_does_not_depend_on_the_batch_size(quill, trained):
    results = [json.loads(quill("evaluate", trained.out, "--json", f"--batch_size={size}")[1]) for size in (1, 7, 64)]
    assert [r["val_loss"] for r in results] == pytest.approx([results[0]["val_loss"]] * 3)


def test_evaluation_in_words_names_the_split(quill, trained):
    assert "of the validation split" in quill("evaluate", f"--out_dir={trained.out}")[1]
    assert "of the training split" in quill("evaluate", f"--out_dir={trained.out}", "--split=train")[1]


def test_a_text_that_changed_is_not_measured_as_if_it_were_the_same(refused, here, trained):
    shutil.copytree(trained.out, here / "out")
    (here / "other.txt").write_text("abc\n" * 100, encoding="utf-8")
    config = here / "out" / "config.yaml"
    stored = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump(stored | {"dataset": "other.txt", "data_dir": "data"}), encoding="utf-8")
    from quill.data.dataset import prepare_dataset

    prepare_dataset("other.txt")
    assert "has changed" in refused("evaluate", "out")


def test_a_text_of_the_same_characters_is_not_mistaken_for_the_old_one(quill, refused, here, changed, tiny):  # T1
    text = (here / "my.txt").read_text(encoding="utf-8")
    assert quill("train", "my.txt", *tiny)[0] == 0
    half = len(text) // 2
    (here / "my.txt").write_text(text[half:] + text[:half], encoding="utf-8")
    quill("prepare", "my.txt")
    line = refused("evaluate", "out")
    assert "my.txt has changed since out was trained" in line and "with dataset=my.txt" in line
    assert "on my.txt" in quill("evaluate", "out", "--dataset=my.txt")[1]


def test_another_text_is_measured_with_the_tokenizer_of_the_model(quill, here, trained):
    (here / "other.txt").write_text("KING 1: now is the winter.\n" * 20, encoding="utf-8")
    code, out, _ = quill("evaluate", trained.out, "--dataset=other.txt", "--json")
    assert code == 0 and json.loads(out)["tokens"] == 53


def test_a_checkpoint_without_its_run_is_measured_on_a_text_that_is_named(quill, refused, here, trained):  # T9
    shutil.copytree(trained.out, here / "out")
    (here / "out" / "config.yaml").unlink()
    quill("evaluate", "out", "--dataset", here / "my.txt")  # prepares the text
    for path in ("out", next((here / "out" / "checkpoints").glob("step-*"))):
        line = refused("evaluate", path)
        assert "as dataset=" in line
        code, _, error = quill("evaluate", path, "--dataset=my.txt")
        assert (code, error) == (0, "")


@pytest.mark.parametrize("command", ["info", "evaluate", "generate"])
def test_a_path_that_does_not_exist_gets_one_message_that_names_a_run_that_does(  # U12, U7
    refused, here, trained, command
):
    shutil.copytree(trained.out, here / "out-mine")
    path = "--path" if command == "info" else "--out_dir"
    line = refused(command, f"{path}=nothere", *(["--prompt=K"] if command == "generate" else []))
    assert line.endswith(
        "error: nothere does not exist (there is a run in out-mine): give a run directory or a model.safetensors\n"
    )


def test_a_long_evaluation_shows_its_progress(quill, here, trained, monkeypatch):  # U16
    from quill.tracking import phase_display

    monkeypatch.setattr(phase_display, "SECONDS_BETWEEN_LINES", 0.0)
    code, _, error = quill("evaluate", trained.out, "--split=train", "--batch_size=1")
    assert code == 0 and error.startswith("quill: ")
    shares = [int(share) for share in re.findall(r"measuring the loss, (\d+)%", error)]
    assert len(shares) > 3 and shares == sorted(shares) and shares[0] == 0 and shares[-1] > 90


def test_evaluation_in_int8_measures_the_rounded_weights(quill, trained):
    loss, rounded = (
        json.loads(quill("evaluate", trained.out, "--json", "--device=cpu", *flags)[1])["val_loss"]
        for flags in ([], ["--quantization=int8"])
    )
    assert rounded != loss and rounded == pytest.approx(loss, rel=0.02)
    code, out, error = quill("evaluate", trained.out, "--json", "--device=cpu", "--weights=int8")
    assert (code, json.loads(out)["val_loss"]) == (0, rounded)
    assert error == "quill evaluate: --weights is now called --quantization: use --quantization=int8\n"


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


def test_info_leaves_out_files_that_are_deleted_meanwhile(quill, here, trained, monkeypatch):  # R6
    """Training replaces its checkpoints: here each file but the weights is deleted just before it is looked at."""
    shutil.copytree(trained.out, here / "out")
    (here / "out" / ".loss.png.0123abcd.draft").write_bytes(b"half a picture")
    stat = Path.stat

    def vanishing(path: Path, **keywords: bool):
        if path.name in ("metrics.jsonl", "training.safetensors"):
            path.unlink(missing_ok=True)
        return stat(path, **keywords)

    monkeypatch.setattr(Path, "stat", vanishing)
    code, out, error = quill("info", "out")
    assert (code, error) == (0, "") and out.count("SHA-256 agrees") == 1
    assert "metrics.jsonl" not in out and "draft" not in out and "samples.txt" in out


@pytest.mark.parametrize("vanish", ["metrics.jsonl", "checkpoints/step-*", "checkpoints/step-*/manifest.json"])
def test_info_leaves_out_what_was_deleted_after_it_was_listed(quill, here, trained, monkeypatch, vanish):  # R6
    shutil.copytree(trained.out, here / "out")

    def list_and_delete(path: Path):
        files = list(files_below(path))
        for each in here.glob(f"out/{vanish}"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        return files

    files_below = info.files_below
    monkeypatch.setattr(info, "files_below", list_and_delete)
    code, out, error = quill("info", "out")
    assert (code, error) == (0, "") and "samples.txt" in out and vanish not in out


def test_info_skips_a_folder_that_cannot_be_read(quill, here, trained):  # T9
    shutil.copytree(trained.out, here / "out")
    (here / "out" / "private").mkdir(mode=0)
    (here / "private").mkdir(mode=0)
    try:
        assert quill("info")[0] == 0
        assert quill("evaluate", "--dataset=my.txt")[0] == 0
    finally:
        (here / "out" / "private").chmod(0o700)
        (here / "private").chmod(0o700)


def test_info_finds_an_altered_file(quill, here, trained):
    shutil.copytree(trained.out, here / "out")
    (state,) = (here / "out").glob("checkpoints/*/training.safetensors")
    state.write_bytes(state.read_bytes() + b"!")
    code, out, _ = quill("info", "out")
    assert code == 2
    assert "ALTERED" in out and out.count("SHA-256 agrees") == 1
    assert hashlib.sha256(state.read_bytes()).hexdigest() not in out
