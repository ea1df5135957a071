"""Laws of `quill demo`: it fits its time, writes over nothing but itself, and every command that it names works."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

import quill.text.corpus
from quill.cli import demo
from quill.text.corpus import find_corpus


@pytest.fixture
def small_demo(here, monkeypatch):
    """Make the demo tiny, on the first text that comes to hand."""
    text = "ROMEO: what light is this? " + (here / "my.txt").read_text(encoding="utf-8")
    (here / "my.txt").write_text(text, encoding="utf-8")
    corpus = replace(find_corpus("my.txt"), name="shakespeare", note="a text for the tests")
    monkeypatch.setattr(quill.text.corpus, "find_demo_corpus", lambda: corpus)
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, "n_layer": 1, "n_embd": 8, "block_size": 8})
    return here


def test_the_demo_trains_writes_measures_and_says_what_to_try(quill, small_demo):
    code, out, error = quill("demo", "--seconds=0.5", "--device=cpu")
    assert (code, error) == (0, "")
    for words in ("a text for the tests", "validation loss  ", "nats per token over the whole split",
                  "bits per character", "loss.png"):  # fmt: skip
        assert words in out
    assert {p.name for p in small_demo.iterdir()} == {"my.txt", "out-demo"}
    assert (small_demo / "out-demo" / "loss.png").is_file()
    named = [line.split("#")[0] for line in out.split("Try next:\n")[1].splitlines()]
    assert len(named) == 3
    for line in named:
        program, *argv = shlex.split(line)
        assert program == "quill"
        quick = ["--max_iters=1", "--eval_iters=1", "--sample_tokens=0"] if argv[0] == "train" else []
        assert quill(*argv, *quick)[0] == 0


def test_the_demo_replaces_an_earlier_demo_and_nothing_else(quill, refused, small_demo, trained):
    assert quill("demo", "--seconds=0.3", "--device=cpu")[0] == 0
    assert quill("demo", "--seconds=0.3", "--device=cpu")[0] == 0
    assert "no demo" in refused("demo", f"--out_dir={trained.out}")


def test_the_steps_fit_the_time(monkeypatch):
    monkeypatch.setattr(demo, "measure", lambda *args, **kwargs: (0.01, 0.5))
    budget = demo.fit_budget({}, None, seconds=60)  # type: ignore[arg-type]
    cost = budget.max_iters * 0.01 + (budget.max_iters / budget.eval_interval + 1) * 0.5
    assert 0.8 * 60 < cost <= 60


@pytest.mark.parametrize(("step_seconds", "steps"), [(100.0, demo.FEWEST_STEPS), (1e-9, demo.MOST_STEPS)])
def test_a_very_slow_or_fast_machine_still_gets_a_sensible_run(monkeypatch, step_seconds, steps):
    monkeypatch.setattr(demo, "measure", lambda *args, **kwargs: (step_seconds, 0.1))
    assert demo.fit_budget({}, None, seconds=60).max_iters == steps  # type: ignore[arg-type]


def test_the_deadline_comes_before_the_time_is_over(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    stop = demo.deadline(60, look_seconds=2)
    now[0] = 57.9
    assert stop() is None
    now[0] = 58.1
    assert stop() == "time"


def test_seconds_that_are_none_are_refused(refused, here):
    assert "seconds=0" in refused("demo", "--seconds=0")
    assert "seconds='soon'" in refused("demo", "--seconds=soon")
