"""Runs of so many minutes: the steps fit the time, given settings stay, and longer runs get larger models."""

from __future__ import annotations

import pytest
import yaml

from quill.planning.recipe import LADDER, PROBE, choose_recipe, epochs_of, regularization
from quill.runs import time_budget as minutes
from quill.runs.settings import build_configs, default_settings
from quill.runs.time_budget import FEWEST_STEPS, MOST_STEPS, Speed, TimeBudget, fit_steps
from quill.tracking.jsonl import read_events


def test_the_steps_fit_the_time():
    fitted = fit_steps(60, Speed(step=0.01, evaluation=0.5), evaluations=8)
    looks = 1 + -(-fitted["max_iters"] // fitted["eval_interval"])
    assert 0.9 * 60 < fitted["max_iters"] * 0.01 + looks * 0.5 <= 60


def run_through(budget: TimeBudget, clock: list[float], seconds_per_step: float, interval: int, log: int) -> int:
    """Take the steps of a run that asks the budget at each log line and after each evaluation; return their number."""
    step, steps, evaluation = 0, budget(0), budget.evaluation
    while step < steps:
        done = min(log - step % log, interval - step % interval, steps - step)
        clock[0], step = clock[0] + done * seconds_per_step, step + done
        if step == steps:
            break
        steps = max(step + 1, budget(step))
        if step % interval == 0:
            clock[0] += evaluation
            steps = max(step + 1, budget(step))
    clock[0] += evaluation
    return step


@pytest.mark.parametrize("evaluation", [0.0, 2.0])
@pytest.mark.parametrize("slower", [0.5, 1.0, 1.6])
def test_a_run_on_a_machine_of_changing_speed_ends_in_time_with_learning_rates_of_zero(slower, evaluation):
    clock = [5.0 + evaluation]
    budget = TimeBudget(5.0, 60.0, steps=600, eval_interval=100, evaluation=evaluation, clock=lambda: clock[0])
    run_through(budget, clock, 0.1 * slower, interval=100, log=10)
    # All steps were taken, so the schedule, which falls to zero at the last one, was not cut off.
    assert clock[0] <= 5 + 60 and clock[0] == pytest.approx(5 + minutes.MARGIN * 60, abs=1.0 + evaluation)


def test_a_run_on_a_machine_much_slower_than_measured_is_planned_again_before_its_first_evaluation():  # U4, U15
    clock, said = [0.0], []
    budget = TimeBudget(
        0.0, 60.0, steps=256, eval_interval=43, evaluation=1.0, clock=lambda: clock[0], on_slower=said.append
    )
    steps = run_through(budget, clock, 3.6, interval=43, log=5)
    assert 10 < steps < 17 and clock[0] <= 62
    assert said == [f"the machine is slower than measured: {budget.steps} steps instead of 256"]


def test_first_steps_that_also_capture_a_graph_do_not_count_as_the_pace_of_the_machine():
    clock, said = [0.0], []
    budget = TimeBudget(
        0.0, 30.0, steps=8000, eval_interval=2000, evaluation=0.0, clock=lambda: clock[0], on_slower=said.append
    )
    assert budget(0) == 8000
    clock[0] = 1.0  # seconds for 10 steps, as if no more than 290 fitted
    assert budget(10) == 8000
    for step in range(20, 1000, 10):
        clock[0] += 10 * 0.0035
        budget(step)
    assert said == [] and budget.steps == 8000


def test_between_evaluations_a_plan_that_is_nearly_right_is_kept():
    clock = [0.0]
    budget = TimeBudget(0.0, 60.0, steps=600, eval_interval=1000, evaluation=0.0, clock=lambda: clock[0])
    plans = set()
    for step in range(0, 300, 10):
        plans.add(budget(step))
        clock[0] += 10 * 0.101
    assert plans == {600}


def test_a_context_is_shorter_than_the_validation_split():  # T4
    for train_tokens, val_tokens in ((1080, 120), (9000, 1000), (90, 10)):
        for probe_steps in (100, 10_000):
            recipe = choose_recipe(probe_steps, train_tokens, val_tokens)
            assert recipe["block_size"] < val_tokens and recipe["batch_size"] * recipe["block_size"] == 2048


@pytest.mark.parametrize(("text", "given"), [("ab", []), ("to be or not " * 100, ["--block_size=130"])])
def test_a_text_too_short_for_a_window_is_refused_before_the_machine_is_measured(  # T4
    quill, here, monkeypatch, text, given
):
    monkeypatch.setattr(minutes, "probe_speed", lambda *args, **kwargs: pytest.fail("measured"))
    (here / "short.txt").write_text(text, encoding="utf-8")
    code, _, error = quill("train", "short.txt", "--minutes=0.1", "--device=cpu", *given)
    assert (code, error.count("\n")) == (2, 1) and "block_size=" in error


def test_evaluations_take_little_of_the_time_of_a_short_run():
    fitted = fit_steps(10, Speed(step=0.01, evaluation=0.5), evaluations=8)
    looks = 1 + -(-fitted["max_iters"] // fitted["eval_interval"])
    assert 2 <= looks <= 4 and fitted["max_iters"] * 0.01 > 0.6 * 10
    hopeless = fit_steps(1, Speed(step=0.01, evaluation=5.0), evaluations=8)
    assert hopeless == {"max_iters": FEWEST_STEPS, "eval_interval": FEWEST_STEPS}


def test_with_its_ngram_dropout_a_row_is_updated_about_once_per_occurrence_in_the_text():
    for epochs in (1, 2, 4, 6):
        assert epochs * (1 - regularization(PROBE, epochs)["ngram_dropout"]) == pytest.approx(0.9, abs=0.05)
    assert regularization(PROBE, 0.01)["ngram_dropout"] == regularization(PROBE, 0.5)["ngram_dropout"] == 0.1


def test_larger_models_drop_tables_of_long_ngrams_after_fewer_epochs():
    assert [regularization(size, 4)["ngram"] for size in (LADDER[0], LADDER[-1])] == [6, 2]
    assert [each.few_epochs for each in LADDER] == sorted((each.few_epochs for each in LADDER), reverse=True)


@pytest.mark.parametrize(("step", "steps"), [(100.0, FEWEST_STEPS), (1e-9, MOST_STEPS)])
def test_a_very_slow_or_fast_machine_still_gets_a_sensible_run(step, steps):
    assert fit_steps(60, Speed(step, 0.1), evaluations=8)["max_iters"] == steps


@pytest.mark.parametrize("train_tokens", [300, 90_000, 1_003_854, 18_000_000])
@pytest.mark.parametrize("probe_steps", [10, 300, 3_000, 30_000, 3_000_000])
def test_every_recipe_is_valid(probe_steps, train_tokens):
    settings = default_settings("modern") | choose_recipe(probe_steps, train_tokens)
    model, config, _ = build_configs(settings)
    assert model.block_size < train_tokens / 4 and config.batch_size >= 1


def test_more_time_gives_a_larger_model_and_more_epochs_give_more_regularization():
    sizes = [choose_recipe(each.probe_steps, 1_000_000) for each in LADDER]
    matrices = [s["n_layer"] * s["n_embd"] ** 2 for s in sizes]
    assert matrices == sorted(set(matrices)), "each step of the ladder is larger"
    short, long = choose_recipe(3_000, 10_000_000), choose_recipe(3_000, 100_000)
    assert short["ngram"] > long["ngram"] and short["weight_decay"] < long["weight_decay"]
    assert epochs_of(PROBE, 100, 204_800) == pytest.approx(1.0)
    assert [each.probe_steps for each in LADDER] == sorted(each.probe_steps for each in LADDER)


def test_minutes_train_a_modern_model_and_flags_override_its_recipe(quill, here, monkeypatch):
    quick = Speed(step=0.5, evaluation=0.01)
    monkeypatch.setattr(minutes, "probe_speed", lambda *args, **kwargs: quick)
    monkeypatch.setattr(minutes, "TimeBudget", lambda *args, **options: lambda step: FEWEST_STEPS + (3 if step else 0))
    small = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--ngram_rows=97", "--batch_size=2", "--sample_tokens=5"]
    code, out, error = quill("train", "my.txt", "--minutes=0.1", "--device=cpu", "--learning_rate=0.002", *small)
    assert (code, error) == (0, ""), error
    assert "measuring the speed of this machine\nfor 6 s: modern model, 1 layer, 8 wide" in out  # U16
    stored = yaml.safe_load((here / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert (stored["architecture"], stored["optimizer"], stored["learning_rate"]) == ("modern", "muon", 0.002)
    assert stored["n_embd"] == 8
    told = read_events(here / "out" / "metrics.jsonl")
    planned = [event["max_iters"] for event in told if event["event"] in ("start", "plan")]
    assert 0 < told[0]["deadline"] <= 1.1 * 6.0  # U4: displays end with the time
    assert planned == [FEWEST_STEPS, FEWEST_STEPS + 3] and stored["max_iters"] == planned[-1]


def test_impossible_minutes_are_refused(refused, here):
    assert "minutes=0.0" in refused("train", "my.txt", "--minutes=0")
    assert "minutes chooses a new run" in refused("train", "--minutes=1", "--resume=True")
