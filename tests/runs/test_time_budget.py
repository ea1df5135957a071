"""Laws of the dial: the steps fit the time, what was set by hand stays, and longer runs get larger models."""

from __future__ import annotations

import pytest
import yaml

import quill.runs.time_budget as minutes
from quill.planning.recipe import LADDER, PROBE, choose_recipe, epochs_of, remembering
from quill.runs.settings import build_configs
from quill.runs.time_budget import FEWEST_STEPS, MOST_STEPS, Pace, Speed, default_settings, fit_steps
from quill.tracking.jsonl import read_events


def test_the_steps_fit_the_time():
    fitted = fit_steps(60, Speed(step=0.01, look=0.5), evaluations=8)
    looks = 1 + -(-fitted["max_iters"] // fitted["eval_interval"])
    assert 0.9 * 60 < fitted["max_iters"] * 0.01 + looks * 0.5 <= 60


@pytest.mark.parametrize("look", [0.0, 2.0])
@pytest.mark.parametrize("slower", [0.5, 1.0, 1.6])
def test_a_machine_that_changes_its_pace_still_ends_in_time_with_its_rates_at_zero(slower, look):
    now, step, interval = 5.0 + look, 0, 100
    pace = Pace(started=5.0, seconds=60.0, steps=600, look=look, clock=lambda: now)
    steps = pace(0)
    assert steps == 600
    while step < steps:
        done = min(interval, steps - step)
        now, step = now + done * 0.1 * slower + look, step + done
        steps = pace(step) if step < steps else steps
    # All steps were made, so that the schedule, which falls to zero at the last one, was not cut off.
    assert now <= 5 + 60 and now == pytest.approx(5 + minutes.MARGIN * 60, abs=0.5 + look)


def test_where_time_is_short_little_of_it_is_spent_on_looking():
    fitted = fit_steps(10, Speed(step=0.01, look=0.5), evaluations=8)
    looks = 1 + -(-fitted["max_iters"] // fitted["eval_interval"])
    assert 2 <= looks <= 4 and fitted["max_iters"] * 0.01 > 0.6 * 10
    hopeless = fit_steps(1, Speed(step=0.01, look=5.0), evaluations=8)
    assert hopeless == {"max_iters": FEWEST_STEPS, "eval_interval": FEWEST_STEPS}


def test_dropout_lets_a_row_learn_about_once_from_each_place_of_the_text():
    for epochs in (1, 2, 4, 6):
        assert epochs * (1 - remembering(PROBE, epochs)["ngram_dropout"]) == pytest.approx(0.9, abs=0.05)
    assert remembering(PROBE, 0.01)["ngram_dropout"] == remembering(PROBE, 0.5)["ngram_dropout"] == 0.1


def test_the_larger_the_model_the_sooner_it_does_without_tables_of_long_runs():
    assert [remembering(size, 4)["ngram"] for size in (LADDER[0], LADDER[-1])] == [6, 2]
    assert [each.few_epochs for each in LADDER] == sorted((each.few_epochs for each in LADDER), reverse=True)


@pytest.mark.parametrize(("step", "steps"), [(100.0, FEWEST_STEPS), (1e-9, MOST_STEPS)])
def test_a_very_slow_or_fast_machine_still_gets_a_sensible_run(step, steps):
    assert fit_steps(60, Speed(step, 0.1), evaluations=8)["max_iters"] == steps


@pytest.mark.parametrize("train_tokens", [300, 90_000, 1_003_854, 18_000_000])
@pytest.mark.parametrize("probe_steps", [10, 300, 3_000, 30_000, 3_000_000])
def test_every_recipe_is_a_possible_one(probe_steps, train_tokens):
    settings = default_settings("modern") | choose_recipe(probe_steps, train_tokens)
    model, config = build_configs(settings)
    assert model.block_size < train_tokens / 4 and config.batch_size >= 1


def test_more_time_means_a_larger_model_and_more_reading_means_more_forgetting():
    sizes = [choose_recipe(each.probe_steps, 1_000_000) for each in LADDER]
    matrices = [s["n_layer"] * s["n_embd"] ** 2 for s in sizes]
    assert matrices == sorted(set(matrices)), "each step of the ladder is larger"
    short, long = choose_recipe(3_000, 10_000_000), choose_recipe(3_000, 100_000)
    assert short["ngram"] > long["ngram"] and short["weight_decay"] < long["weight_decay"]
    assert epochs_of(PROBE, 100, 204_800) == pytest.approx(1.0)
    assert [each.probe_steps for each in LADDER] == sorted(each.probe_steps for each in LADDER)


def test_minutes_train_a_modern_model_and_flags_go_on_top(quill, here, monkeypatch):
    quick = Speed(step=0.5, look=0.01)
    monkeypatch.setattr(minutes, "measure", lambda *args, **kwargs: quick)
    monkeypatch.setattr(minutes, "Pace", lambda *args: lambda step: FEWEST_STEPS + (3 if step else 0))
    small = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--ngram_rows=97", "--batch_size=2", "--sample_tokens=5"]
    code, out, error = quill("train", "my.txt", "--minutes=0.1", "--device=cpu", "--learning_rate=0.002", *small)
    assert (code, error) == (0, ""), error
    assert "for 0.1 minutes: modern model, 1 layer, 8 wide" in out
    stored = yaml.safe_load((here / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert (stored["architecture"], stored["optimizer"], stored["learning_rate"]) == ("modern", "muon", 0.002)
    assert stored["n_embd"] == 8
    told = read_events(here / "out" / "metrics.jsonl")
    planned = [event["max_iters"] for event in told if event["event"] in ("start", "plan")]
    assert planned == [FEWEST_STEPS, FEWEST_STEPS + 3] and stored["max_iters"] == planned[-1]


def test_minutes_that_cannot_be_are_refused(refused, here):
    assert "minutes=0.0" in refused("train", "my.txt", "--minutes=0")
    assert "--minutes chooses a new run" in refused("train", "--minutes=1", "--resume=True")
