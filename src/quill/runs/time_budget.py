"""A run of a given number of minutes: measure the machine, choose a recipe, and keep within the time.

planning/recipe.py decides from the speed of a few real steps. A machine may become slower or faster, so the number of
steps is replanned during the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quill.runs.settings import Settings, default_settings
from quill.runs.speed_probe import Speed, probe_speed
from quill.units import format_duration

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset

MARGIN = 0.97  # of the time: the last stretch may be slower than the one before it
EVALUATIONS = 6
EVALUATION_SHARE = 0.25  # of the time, at most: evaluations, samples and checkpoints
FEWEST_STEPS, MOST_STEPS = 20, 1_000_000
MUCH_SLOWER = 0.7  # of the steps that were planned first
REPLAN_SHARE = 0.1  # between evaluations, a smaller change of the plan is ignored
WARM_UP_SHARE = 0.05  # of the time, at most: the first steps, which also compile, capture or allocate


class TimeBudget:
    """The `plan` of a run with a time limit: how many steps fit at the pace of the steps so far.

    It is called at each `step` event and after each evaluation. Between two calls at the same step there was an
    evaluation, whose duration is assumed for later ones. `steps` is the plan until a pace is known, and `evaluation`
    the seconds of an evaluation until one was measured. `on_slower` is called once if far fewer steps fit.
    """

    def __init__(
        self,
        started: float,
        seconds: float,
        *,
        steps: int,
        eval_interval: int,
        evaluation: float,
        clock: Callable[[], float] = time.monotonic,
        on_slower: Callable[[str], None] = lambda message: None,
    ):
        self.ends, self.steps, self.clock = started + MARGIN * seconds, steps, clock
        self.evaluation, self.eval_interval = evaluation, eval_interval
        self.first_steps, self.on_slower = steps, on_slower
        self.least = seconds / 50  # over less time than this, a pace is noise
        self.warm_up = WARM_UP_SHARE * seconds  # 0 once the first steps are over
        self.last: tuple[int, float] | None = None  # step and time of the last call
        self.measured_steps, self.measured_seconds = 0, 0.0

    def __call__(self, step: int) -> int:
        """Return how many steps the run has in all, after `step` finished steps."""
        now = self.clock()
        after_evaluation = self.last is not None and self.last[0] == step
        if self.last is not None and after_evaluation:
            self.evaluation = now - self.last[1]
        elif self.last is not None:
            if now - self.last[1] > self.warm_up:
                self.measured_steps += step - self.last[0]
                self.measured_seconds += now - self.last[1]
            self.warm_up = 0.0
        self.last = (step, now)
        if self.measured_steps and (after_evaluation or self.measured_seconds >= self.least):
            self._replan(step, now, always=after_evaluation)
        return self.steps

    def _replan(self, step: int, now: float, always: bool) -> None:
        pace = self.measured_seconds / self.measured_steps
        each = pace + self.evaluation / self.eval_interval
        steps = step + max(0, int((self.ends - now - self.evaluation) / each))
        if always or abs(steps - self.steps) > REPLAN_SHARE * max(1, self.steps - step):
            self.steps = steps
            self.measured_steps, self.measured_seconds = 0, 0.0
        if self.steps < MUCH_SLOWER * self.first_steps:
            self.on_slower(f"the machine is slower than measured: {self.steps:,} steps instead of {self.first_steps:,}")
            self.first_steps = 0  # called once only


def fit_to_minutes(
    dataset: AnyDataset, minutes: float, asked: Mapping[str, Any], *, evaluations: int = EVALUATIONS
) -> tuple[Settings, Speed]:
    """Return the settings of a run of `minutes` on this text and machine, and the speed measured with them.

    `asked` are settings given by name, which are kept. The time includes evaluations, samples, and the measurement.
    """
    from quill.planning.recipe import RECIPE, choose_recipe, choose_size, regularization

    started = time.monotonic()
    seconds = minutes * 60
    defaults = default_settings(asked.get("architecture", RECIPE["architecture"]))
    probe_seconds = min(3.0, seconds / 50)
    probe = defaults | RECIPE | {"device": asked.get("device", "auto")}
    probe |= choose_size(0, len(dataset.train), len(dataset.val)).settings()
    probed = probe_speed(probe, dataset, probe_seconds, evaluate=False)
    recipe = choose_recipe(seconds / probed.step, len(dataset.train), len(dataset.val))
    settings = defaults | {name: value for name, value in recipe.items() if name in defaults} | dict(asked)
    speed = probe_speed(settings, dataset, probe_seconds, evaluate=evaluations > 0)
    left = seconds - (time.monotonic() - started)
    settings |= fit_steps(left, speed, evaluations) | dict(asked)
    windows = settings["max_iters"] * settings["batch_size"] * settings["gradient_accumulation_steps"]
    size = choose_size(seconds / probed.step, len(dataset.train), len(dataset.val))
    recipe = regularization(size, windows * settings["block_size"] / len(dataset.train))  # the epochs are known now
    return settings | {name: value for name, value in recipe.items() if name in defaults} | dict(asked), speed


def fit_steps(seconds: float, speed: Speed, evaluations: int) -> dict[str, int]:
    """Return the number of steps that fit the time, and the interval of evaluations, fewer of them in a short time."""
    evaluation = 1.5 * speed.evaluation  # some also draw the plot or the display
    if evaluation:  # one more comes before the first step
        evaluations = max(1, min(evaluations, int(EVALUATION_SHARE * seconds / evaluation) - 1))
    steps = int((seconds * MARGIN - (evaluations + 1) * evaluation) / speed.step)
    steps = max(FEWEST_STEPS, min(MOST_STEPS, steps))
    return {"max_iters": steps, "eval_interval": max(1, -(-steps // max(1, evaluations)))}


def describe_choice(settings: Settings, minutes: float) -> str:
    """Return the chosen model and number of steps, in one line."""
    s = settings
    how_long = f"{minutes:g} minute{'s' * (minutes != 1)}" if minutes >= 1 else format_duration(60 * minutes)
    return (
        f"for {how_long}: {s['architecture']} model, "
        f"{s['n_layer']} layer{'s' * (s['n_layer'] != 1)}, {s['n_embd']} wide, "
        f"context {s['block_size']}, batch {s['batch_size']}, {s['max_iters']:,} steps"
    )
