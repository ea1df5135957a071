"""A run with a film is the same run, and its film is the same however often the run was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import quill
from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import find_checkpoint
from quill.lab.film.format import NAME, Evaluation, read_film, write_film
from quill.runs.presets import read_settings

start: Any = quill.run
TINY: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "batch_size": 4, "max_iters": 14, "eval_interval": 5,
    "eval_iters": 2, "log_interval": 3, "sample_tokens": 4, "warmup_iters": 2, "device": "cpu", "progress": False,
    "dataset": "my.txt", "learning_rate": 0.01,
}  # fmt: skip
CLASSIC = {"architecture": "classic", "dropout": 0.2}
MODERN = {"architecture": "modern", "optimizer": "muon", "ngram_dropout": 0.2, "dropout": 0.1}
RUNS = {
    "classic": CLASSIC,
    "modern": MODERN,
    "recomputed blocks": CLASSIC | {"gradient_checkpointing": True},
    "bfloat16 in parts": MODERN | {"dtype": "bfloat16", "gradient_accumulation_steps": 2, "batch_size": 2},
}
several = pytest.mark.parametrize("settings", RUNS.values(), ids=list(RUNS))


def losses(out_dir: Path) -> list[dict[str, Any]]:
    """Return the events of a run without its times and its folder."""
    without = ("seconds", "tokens_per_second", "out_dir", "checkpoint")
    events = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in event.items() if name not in without} for event in events]


def state(out_dir: Path) -> dict[str, torch.Tensor]:
    """Return weights, optimizer state and random-number state of the last checkpoint."""
    folder = find_checkpoint(out_dir, "last")
    return read_tensors(folder / "model.safetensors")[0] | read_tensors(folder / "training.safetensors")[0]


@several
def test_a_run_with_a_film_has_the_losses_and_weights_of_one_without(here, settings):
    for film in (False, True):
        start(**(TINY | settings), film=film, out_dir=f"out-{film}")
    assert not (here / "out-False" / NAME).exists()
    assert losses(here / "out-True") == losses(here / "out-False")
    one, other = state(here / "out-True"), state(here / "out-False")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    film = read_film(here / "out-True" / NAME)
    assert film.steps == [0, 1, 2, 3, 4, 5, 7, 9, 12, 14]
    evaluations = {event["step"]: event for event in losses(here / "out-True") if event["event"] == "evaluation"}
    for frame in film.frames:
        known = evaluations[max(step for step in evaluations if step <= frame.step)]
        assert frame.evaluation == Evaluation(known["step"], known["train_loss"], known["val_loss"])


KILLED = """
import os, quill
from quill.lab.film import recorder
write = recorder.write_film
def write_and_die(file, film):
    write(file, film)
    if film.steps[-1] == {step}:
        os._exit(9)
recorder.write_film = write_and_die
quill.run(film=True, **{settings})
"""


# Without a process of its own: the test after it.
@pytest.mark.long
@pytest.mark.parametrize("settings", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_a_run_that_was_killed_and_resumed_has_the_same_film(here, settings):
    """It is killed after a frame that its checkpoint has not, and at the step of a checkpoint."""
    start(**(TINY | settings), film=True, out_dir="whole")
    for step in (5, 9, 14):
        given = TINY | settings | {"out_dir": f"killed-{step}"}
        code = textwrap.dedent(KILLED).replace("{settings}", repr(given)).replace("{step}", str(step))
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 9
        assert read_film(here / f"killed-{step}" / NAME).steps[-1] == step
        start(resume=True, out_dir=f"killed-{step}", progress=False)
        assert (here / f"killed-{step}" / NAME).read_bytes() == (here / "whole" / NAME).read_bytes()


def test_a_run_that_was_interrupted_and_extended_continues_its_film(here):
    stopped = start(**TINY, film=True, callback=lambda event: "enough" if event["step"] == 5 else None)
    assert stopped.reason == "enough" and read_film(here / "out" / NAME).steps == [0, 1, 2, 3, 4, 5, 6]
    start(resume=True, progress=False, max_iters=9)
    assert read_film(here / "out" / NAME).steps == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    start(resume="best", max_iters=9, progress=False)
    assert read_film(here / "out" / NAME).steps[-1] == 9


def test_overwriting_a_run_replaces_its_film_and_removes_it_where_the_new_run_has_none(here):
    start(**TINY, film=True)
    before = (here / "out" / NAME).read_bytes()
    start(**(TINY | {"n_embd": 16}), film=True, overwrite=True)
    assert (here / "out" / NAME).read_bytes() != before
    start(**TINY, overwrite=True)
    assert not (here / "out" / NAME).exists()


def test_a_damaged_or_foreign_film_is_replaced_by_a_new_one_with_a_warning(here):
    start(**TINY, film=True)
    file = here / "out" / NAME
    film = read_film(file)
    write_film(file, type(film)(film.tokens_T[::-1], film.tokenizer, film.frames))
    for broken in (b"x" * 100, file.read_bytes()):
        file.write_bytes(broken)
        events: list[dict[str, Any]] = []
        steps = quill.run(resume=True, out_dir="out", max_iters=16, progress=events.append).step
        warnings = [event["message"] for event in events if event["event"] == "warning"]
        assert steps == 16 and len(warnings) == 1 and warnings[0].startswith("a new film begins here")
        assert read_film(file).steps == [14, 16]
        (here / "out").rename(here / f"done-{len(broken)}")
        start(**TINY, film=True)


def test_a_film_that_cannot_be_written_ends_with_one_warning_and_the_run_goes_on(here, monkeypatch):
    from quill.lab.film import recorder

    def full(file: Path, film: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "write_film", full)
    events: list[dict[str, Any]] = []
    settings = {name: value for name, value in TINY.items() if name != "progress"}
    assert quill.run(**settings, film=True, progress=events.append).step == 14
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1 and "No space left" in warnings[0]
    assert not (here / "out" / NAME).exists()


@pytest.mark.long  # whole runs for a time
def test_a_run_for_minutes_has_a_film_unless_it_is_declined(here):
    small = {name: TINY[name] for name in ("dataset", "device", "max_iters", "progress")}
    run = start(minutes=0.05, **small, out_dir="with")
    start(minutes=0.05, **small, film=False, out_dir="without")
    assert read_film(here / "with" / NAME).steps[-1] == run.step and not (here / "without" / NAME).exists()
    assert read_settings("with")[0]["film"] is True
    start(resume=True, out_dir="with", max_iters=16, progress=False)
    assert read_film(here / "with" / NAME).steps[-1] == 16
