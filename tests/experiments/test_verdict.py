"""Verdicts follow from intervals and margins alone."""

import numpy as np
import pytest

from quill.errors import ConfigError
from quill.experiments.verdict import Effect, crossed_interval, effect, joint_verdict
from quill.lab.statistics import Interval, bootstrap_interval


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.02, 0.05, "supported"),
        (0.01, 0.05, "supported"),  # the margin itself is reached
        (0.005, 0.05, "unclear"),  # above zero, but straddles the margin
        (-0.02, 0.05, "unclear"),
        (0.001, 0.009, "not here"),  # a sure gain that is too small to matter
        (-0.05, -0.02, "not here"),
    ],
)
def test_the_verdict_is_the_side_of_the_margin_that_holds_the_whole_interval(low, high, verdict):
    assert Effect("gain", Interval((low + high) / 2, low, high), 0.01).verdict == verdict


def test_a_claim_needs_all_of_its_effects():
    def made(*verdicts):
        bounds = {"supported": (0.1, 0.2), "unclear": (-0.1, 0.2), "not here": (-0.2, -0.1)}
        return joint_verdict([Effect(v, Interval(0.0, *bounds[v]), 0.05) for v in verdicts])

    assert made("supported", "supported") == "supported"
    assert made("supported", "unclear") == "unclear"
    assert made("unclear", "not here", "supported") == "not here"
    with pytest.raises(ConfigError, match="at least one effect"):
        joint_verdict([])


def test_the_interval_widens_when_seeds_differ_and_not_only_windows():
    windows = np.random.default_rng(0).normal(size=(1, 400))
    same, different = np.repeat(windows, 3, 0), windows + np.array([[-1.0], [0.0], [1.0]])
    narrow, wide = crossed_interval(same), crossed_interval(different)
    assert narrow.mean == pytest.approx(wide.mean)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert wide.high - wide.low > 1.5  # the standard error of three such seeds is 0.58


def test_one_seed_leaves_the_interval_over_windows_and_the_mean_is_exact():
    values = np.random.default_rng(1).normal(size=(1, 50))
    assert crossed_interval(values) == bootstrap_interval(values[0])
    assert effect("a", np.full((3, 5), 0.25), 0.1).interval == Interval(0.25, 0.25, 0.25)


def test_the_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(2).normal(size=(3, 20))
    assert crossed_interval(values, seed=5) == crossed_interval(values, seed=5) != crossed_interval(values, seed=6)


def test_losses_that_are_not_finite_have_no_interval():
    with pytest.raises(ConfigError, match="not finite"):
        crossed_interval(np.array([[1.0, np.inf], [1.0, 2.0]]))
