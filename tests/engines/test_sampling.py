"""Sampling: exact filters, exact frequencies, and random numbers that depend on (seed, row, token) only."""

import math

import numpy as np
import pytest
import torch
from reference_sampling import (
    apply_min_p,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    choose_tokens,
    probabilities,
)

from quill.engines.random_numbers import uniforms
from quill.engines.request import SamplingConfig
from quill.engines.sampling import draw
from quill.errors import ConfigError

FOUR = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
LOGITS = FOUR.log()


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def frequencies(probabilities_BV: torch.Tensor, draws: int = 10_000) -> torch.Tensor:
    """Draw at the midpoints of equal strata of [0, 1): the counts are then exact to one draw, without chance."""
    strata = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = draw(probabilities_BV.expand(draws, -1), strata)
    return torch.bincount(tokens, minlength=probabilities_BV.size(-1)) / draws


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(temperature=0), [0, 1, 0, 0]),
        (SamplingConfig(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # p² / Σ p²
        (SamplingConfig(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (SamplingConfig(top_k=99), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(top_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (SamplingConfig(top_p=1.0), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(min_p=0.45), [0, 4 / 9, 2 / 9, 3 / 9]),
        (SamplingConfig(min_p=0.0), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1), [0, 1, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_filtered_probabilities_say(config: SamplingConfig, expected: list[float]):
    exact = torch.tensor(expected, dtype=torch.float32)
    filtered = probabilities(LOGITS, config)
    torch.testing.assert_close(filtered[0], exact)
    torch.testing.assert_close(frequencies(filtered), exact, atol=1.01e-4, rtol=0)


def test_philox_draws_pass_a_chi_square_test():
    tokens = draw(FOUR.expand(20_000, -1), torch.from_numpy(uniforms(7, [0], 0, 20_000)[:, 0]))
    expected = FOUR[0] * 20_000
    chi_square = ((torch.bincount(tokens, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, 0.1 % level


def test_filters_apply_in_the_documented_order():
    # Temperature 0.5 makes 1, 16, 4 and 9 thirtieths. The best two hold 25/30 = 0.83 of that, but 25/29 = 0.86 of what
    # top-k 3 leaves: only then do they reach top-p 0.85. Min-p 0.6 compares 9/16, not the 3/4 before temperature.
    for config, tokens in (
        (SamplingConfig(temperature=0.5, top_p=0.85), [1, 2, 3]),
        (SamplingConfig(temperature=0.5, top_p=0.85, top_k=3), [1, 3]),
        (SamplingConfig(temperature=0.5, top_p=0.85, top_k=3, min_p=0.6), [1]),
    ):
        assert kept(probabilities(LOGITS, config).log()) == [tokens]


def test_filters_treat_each_row_independently():
    rows = torch.tensor([[4.0, 1, 2, 3], [1, 1, 5, 1], [0, 0, 0, 9]])
    assert kept(apply_top_k(rows, 2)) == [[0, 3], [0, 1, 2, 3], [0, 1, 2, 3]]  # ties of the last one stay
    assert kept(apply_top_p(rows, 0.5)) == [[0], [2], [3]]
    assert kept(apply_min_p(rows, 0.3)) == [[0, 3], [2], [3]]


def test_ties_are_kept_whatever_their_order():
    tied = torch.zeros(1, 4)
    assert kept(apply_top_k(tied, 1)) == kept(apply_top_p(tied, 0.1)) == kept(apply_min_p(tied, 0.9)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("filtered", [apply_top_k(LOGITS, 1), apply_top_p(LOGITS, 1e-9), apply_min_p(LOGITS, 0.999999)])
def test_the_likeliest_token_always_survives(filtered: torch.Tensor):
    assert kept(filtered) == [[1]]


def test_filters_keep_what_earlier_filters_removed_removed():
    after_top_k = apply_top_k(LOGITS, 2)
    assert kept(apply_min_p(apply_top_p(after_top_k, 0.999), 0.0001)) == [[1, 3]]
    assert kept(apply_top_k(after_top_k, 3)) == [[1, 3]]


def test_filters_do_not_change_their_argument():
    before = LOGITS.clone()
    probabilities(LOGITS, SamplingConfig(0.7, 2, 0.9, 0.1))
    assert torch.equal(LOGITS, before)


def test_low_temperature_approaches_greedy_and_high_temperature_approaches_even():
    assert probabilities(LOGITS, SamplingConfig(1e-30))[0].tolist() == [0, 1, 0, 0]
    assert probabilities(LOGITS, SamplingConfig(5e-324))[0].tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(probabilities(LOGITS, SamplingConfig(1e30)), torch.full((1, 4), 0.25))


def test_temperature_zero_takes_the_first_of_equally_likely_tokens():
    tied = torch.tensor([[1.0, 3, 3, 2]])
    assert kept(apply_temperature(tied, 0)) == [[1]]
    assert choose_tokens(tied, SamplingConfig(0), torch.tensor([0.99])).tolist() == [1]


def test_probabilities_are_float32_whatever_the_model_computes_in():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert probabilities(LOGITS.to(dtype), SamplingConfig(0.9, 3)).dtype == torch.float32


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("total", [1.0, 1 - 1e-6, 1 + 1e-6, 1e-30])
def test_a_token_of_probability_zero_is_never_drawn(uniform: float, total: float):
    edges = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0, 0.0]]) * total
    token = draw(edges, torch.tensor([uniform], dtype=torch.float64)).item()
    assert token == (1 if uniform == 0 else 3)


def test_probabilities_whose_sum_rounds_below_one_can_be_sampled():
    many = torch.full((1, 50_257), 1 / 50_257)
    many[0, -100:] = 0
    assert draw(many, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 50_257 - 101


def test_uniforms_are_a_pure_function_of_seed_row_and_token():
    whole = uniforms(3, range(5), 0, 40)
    assert whole.shape == (40, 5) and (whole >= 0).all() and (whole < 1).all()
    for start, count in ((0, 1), (1, 7), (4, 4), (13, 27)):
        assert np.array_equal(uniforms(3, range(5), start, count), whole[start : start + count])
    assert np.array_equal(uniforms(3, [4, 1], 0, 40), whole[:, [4, 1]])
    stream = np.random.Generator(np.random.Philox(key=np.array([3, 2], dtype=np.uint64)))
    assert np.array_equal(stream.random(40), whole[:, 2])


def test_other_seeds_and_rows_give_other_uniforms():
    assert len({float(value) for seed in (0, 1, 2**64 - 1) for value in uniforms(seed, range(4), 0, 8).flat}) == 96


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.nan, math.inf, "1", True, None)),
        *(("top_k", value) for value in (0, -1, 2.5, True)),
        *(("top_p", value) for value in (0, -0.5, 1.01, math.nan, "0.9")),
        *(("min_p", value) for value in (-0.1, 1, math.nan)),
    ],
)
def test_an_impossible_setting_is_an_error_that_names_it(name: str, value: object):
    with pytest.raises(ConfigError, match=f"{name}=") as caught:
        SamplingConfig(**{name: value})  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
