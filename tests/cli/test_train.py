"""`quill train`: the files of a run, overwriting and resuming."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quill import process
from quill.cli.arguments import Parser, add_configuration, settings_of
from quill.evaluation.loss import cross_entropy
from quill.tracking.jsonl import read_events


@pytest.fixture
def flags(tiny):
    return [*tiny, "--dataset=my.txt"]


@pytest.fixture
def copied(trained, here):
    """The trained run, copied to where it may be changed; its text lies beside it."""
    shutil.copytree(trained.out, here / "out")
    return here / "out"


def test_a_run_leaves_all_documented_files(trained):
    assert {p.name for p in trained.out.iterdir()} == {
        "best", "checkpoints", "config.yaml", "last", "loss.png", "metrics.jsonl", "samples.txt",
    }  # fmt: skip
    events = read_events(trained.out / "metrics.jsonl")
    assert events[0]["event"] == "start" and events[-1]["event"] == "end"
    assert {e["step"] for e in events if e["event"] == "evaluation"} == {0, 3, 6}
    assert {e["step"] for e in events if e["event"] == "step"} == {2, 3, 5, 6}
    assert "my.txt" in events[0]["corpus_note"]
    assert (trained.out / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = (trained.out / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("──── step ") == 3


def test_the_stored_configuration_is_complete_and_gives_the_same_run_again(trained):
    parser = Parser("train")
    add_configuration(parser)
    stored = yaml.safe_load((trained.out / "config.yaml").read_text(encoding="utf-8"))
    assert stored == settings_of(parser.read(trained.flags))
    for name in (trained.out / "config.yaml", trained.out):
        assert settings_of(parser.read([f"--config={name}"])) == stored


def test_progress_goes_to_standard_output_in_plain_lines_when_it_is_no_terminal(quill, here, flags):
    code, out, error = quill("train", *flags)
    assert (code, error) == (0, "")
    assert "\x1b" not in out
    assert "corpus   " in out and "step 6 of 6   training loss" in out
    assert "finished at step 6" in out
    assert "next: quill generate --out_dir=out\n" in out


def test_a_text_can_be_named_without_a_flag(quill, here, flags):
    assert quill("train", "my.txt", *flags, "--max_iters=1", "--sample_tokens=0")[0] == 0
    assert (here / "samples.txt").exists() is False
    assert yaml.safe_load((here / "out/config.yaml").read_text(encoding="utf-8"))["dataset"] == "my.txt"


def test_an_existing_run_is_not_overwritten(refused, trained):
    line = refused("train", *trained.flags)
    assert "already holds this run" in line and "resume=True" in line and "overwrite=True" in line


def test_a_run_with_another_configuration_is_refused_by_what_differs(refused, trained):
    line = refused("train", *trained.flags, "--n_embd=16", "--seed=2")
    assert "n_embd=8, here 16; seed=1337, here 2" in line and "overwrite=True" in line and "resume" not in line
    assert "max_iters=6, here 9" in (longer := refused("train", *trained.flags, "--max_iters=9"))
    assert "resume=True" in longer
    many = refused("train", *trained.flags, "--n_embd=16", "--n_layer=2", "--seed=2", "--dropout=0.5", "--bias=True")
    assert "and 2 more" in many


def test_a_folder_without_a_checkpoint_holds_no_run(quill, here, flags):
    (here / "out").mkdir()
    (here / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert quill("train", *flags, "--max_iters=1")[0] == 0
    assert (here / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_overwriting_starts_over_and_keeps_the_users_files(quill, copied, trained):
    (copied / "notes.txt").write_text("mine", encoding="utf-8")
    assert quill("train", *trained.flags, "--out_dir=out", "--overwrite=True", "--max_iters=2")[0] == 0
    assert [p.name for p in (copied / "checkpoints").glob("*-*")] == ["step-000002"]
    assert [e["step"] for e in read_events(copied / "metrics.jsonl") if e["event"] == "start"] == [0]
    assert (copied / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_invalid_flag_with_overwrite_leaves_the_old_run(refused, copied, tiny):
    assert "missing.txt" in refused("train", *tiny, "--dataset=missing.txt", "--overwrite=True")


def test_resuming_needs_no_other_flag(quill, copied, trained):
    assert quill("train", "--resume=True", "--max_iters=8")[0] == 0
    events = read_events(copied / "metrics.jsonl")
    assert [e["step"] for e in events if e["event"] == "start"] == [0, 6]
    assert [e["step"] for e in events if e["event"] == "evaluation"] == [0, 3, 6, 8]
    stored = yaml.safe_load((copied / "config.yaml").read_text(encoding="utf-8"))
    assert (stored["max_iters"], stored["n_embd"], stored["out_dir"]) == (8, 8, "out")
    assert (copied / "samples.txt").read_text(encoding="utf-8").count("──── step ") == 4


def test_resuming_a_finished_run_says_that_nothing_is_left(quill, copied, files_below):
    before = files_below(copied)
    code, out, _ = quill("train", "--resume=True")
    assert code == 0 and "nothing left to do" in out and "--max_iters=12" in out
    assert files_below(copied) == before


@pytest.mark.parametrize("flag", ["--n_embd=16", "--dataset=other.txt", "--seed=3", "--batch_size=5"])
def test_resuming_refuses_another_model_or_text_by_name(refused, copied, flag):
    assert flag.removeprefix("--") in refused("train", "--resume=True", flag).replace("'", "")


def test_resuming_accepts_a_flag_that_changes_nothing(quill, copied):
    assert quill("train", "--resume=True", "--n_embd=8")[0] == 0


def test_resuming_without_a_run_is_refused(refused, here):
    assert "no run to resume" in refused("train", "--resume=True")
    assert "use one of them" in refused("train", "--resume=True", "--overwrite=True")


def test_tensorboard_files_are_written_when_asked_for(quill, here, flags):
    pytest.importorskip("tensorboard")
    assert quill("train", *flags, "--max_iters=2", "--tensorboard=True")[0] == 0
    assert list((here / "out" / "tensorboard").glob("events.*"))


def test_metrics_are_one_json_object_a_line(trained):
    lines = (trained.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["step"] >= 0 for line in lines)


def test_a_modern_run_trains_resumes_and_generates(quill, refused, here, flags):
    modern = ["--architecture=modern", "--n_kv_head=1", "--optimizer=muon", "--lr_schedule=linear"]
    assert quill("train", *flags, *modern)[0] == 0
    code, out, error = quill("train", "--resume=True", "--max_iters=9")
    assert (code, error) == (0, "") and "finished at step 9" in out
    stored = yaml.safe_load((here / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert stored["architecture"] == "modern" and stored["n_kv_head"] == 1 and "bias" not in stored
    assert "modern: " in quill("info", "out")[1]
    assert quill("generate", "--prompt=KING", "--max_new_tokens=20", "--device=cpu")[0] == 0
    assert "architecture=classic cannot be changed" in refused("train", "--resume=True", "--architecture=classic")


def test_v2_trains_its_recipe_and_generates_500_characters(quill, here, flags):
    code, out, _ = quill("v2", *flags)
    text = Path("generated_text.txt").read_text(encoding="utf-8")
    assert code == 0
    assert len(text) == 500 and text in out
    stored = yaml.safe_load(Path("out-v2/config.yaml").read_text(encoding="utf-8"))
    assert (stored["activation"], stored["bias"], stored["tie_weights"], stored["n_embd"]) == ("relu", True, False, 8)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself SIGINT without ending the test run")
def test_the_command_that_an_interrupted_run_prints_resumes_it(quill, here, tiny, signals, monkeypatch):
    calls = iter(range(100))

    def interrupt(*arguments: Any) -> torch.Tensor:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("quill.training.step.cross_entropy", interrupt)
        code, out, error = quill("train", "my.txt", *tiny)
    process.received.clear()
    assert code == 130, error
    stopped = re.search(r"interrupted at step (\d+)", out)
    go_on = re.search(r"resume with: quill (.+)", out)
    assert stopped is not None and int(stopped[1]) in (3, 4)
    assert go_on is not None and "--resume=True" in go_on[1]
    code, out, _ = quill(*shlex.split(go_on[1]))
    assert code == 0 and "finished at step 6" in out
