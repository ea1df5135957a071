"""Sampling for many sequences at once chooses for each of them what the formulas for one configuration choose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sampling import adjust
from reference_sampling import choose_tokens as choose_by_one_configuration

from quill.engines.request import Request, SamplingConfig
from quill.engines.sampling import ALL_STAGES, BatchSampler, choose_tokens, stages_of


@st.composite
def requests(draw: st.DrawFn) -> Request:
    how = SamplingConfig(
        temperature=draw(st.sampled_from([0.0, 1e-45, 0.3, 1.0, 1.0, 2.0])),
        top_k=draw(st.none() | st.integers(1, 50)),
        top_p=draw(st.none() | st.sampled_from([1e-9, 0.1, 0.513, 0.9, 1.0])),
        min_p=draw(st.none() | st.sampled_from([0.0, 0.021, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.5, -0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.25, -0.3])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
    )
    bias = draw(st.sampled_from([{}, {}, {0: 3.0}, {0: -100.0}]))
    prompt = draw(st.lists(st.integers(0, 39), min_size=1, max_size=9))
    return Request(tuple(prompt), 1, how, logit_bias=bias)


BATCHES = (st.lists(requests(), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.booleans())


@settings(max_examples=75, deadline=None)
@given(*BATCHES)
def test_each_row_is_sampled_with_its_own_settings_whatever_the_other_rows_are(
    requests: list[Request], seed: int, tied: bool
) -> None:
    check_rows(requests, seed, tied)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(*BATCHES)
def test_each_row_is_sampled_with_its_own_settings_in_many_batches(
    requests: list[Request], seed: int, tied: bool
) -> None:
    check_rows(requests, seed, tied)


def check_rows(requests: list[Request], seed: int, tied: bool) -> None:
    random_numbers = torch.Generator().manual_seed(seed)
    B, V = len(requests), 40
    logits_BV = 3 * torch.randn(B, V, generator=random_numbers)
    if tied:
        logits_BV = logits_BV.round()
    uniform_B = torch.rand(B, generator=random_numbers)
    sampler = BatchSampler(B, V, torch.device("cpu"))
    rules = sampler.rules
    for slot, request in enumerate(requests):
        sampler.assign(slot, request)
    rules.counts_BV.copy_(torch.randint(0, 3, (B, V), generator=random_numbers))
    expected = [
        choose_by_one_configuration(
            adjust(logits_BV[i], request.sampling, rules.bias_BV[i], rules.seen_BV[i], rules.counts_BV[i])[None],
            request.sampling,
            uniform_B[i : i + 1],
        ).item()
        for i, request in enumerate(requests)
    ]
    assert sampler.choose(logits_BV, uniform_B, stages_of(requests)).tolist() == expected
    assert sampler.choose(logits_BV, uniform_B, ALL_STAGES).tolist() == expected  # unused stages change nothing
    for slot, request in enumerate(requests):
        row = torch.tensor([slot])
        assert sampler.choose(logits_BV[row], uniform_B[row], stages_of([request]), row).tolist() == [expected[slot]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(temperature=0), [0, 1, 0, 0]),
        (SamplingConfig(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # p² / Σ p²
        (SamplingConfig(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (SamplingConfig(top_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (SamplingConfig(top_p=1e-46).for_engine(), [0, 1, 0, 0]),  # W7
        (SamplingConfig(min_p=0.45), [0, 4 / 9, 2 / 9, 3 / 9]),
        (SamplingConfig(temperature=0.5, top_k=3, top_p=0.85), [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_tokens_are_sampled_with_the_frequencies_of_their_settings(
    config: SamplingConfig, expected: list[float]
) -> None:
    draws, logits_V = 10_000, torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    sampler = BatchSampler(1, 4, torch.device("cpu"))
    sampler.assign(0, Request((0,), 1, config))
    # The midpoints of equal parts of [0, 1): the counts are then exact to one draw, without chance.
    uniform_B = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    rules = sampler.rules.rows(torch.zeros(draws, dtype=torch.long))
    tokens_B = choose_tokens(logits_V.expand(draws, -1), uniform_B, rules)
    shares_V = torch.bincount(tokens_B, minlength=4) / draws
    torch.testing.assert_close(shares_V, torch.tensor(expected, dtype=torch.float32), atol=1.01e-4, rtol=0)


def test_a_slot_that_is_assigned_again_forgets_its_earlier_settings() -> None:
    sampler = BatchSampler(1, 5, torch.device("cpu"))
    fresh = {name: tensor.clone() for name, tensor in vars(sampler.rules).items()}
    sampler.assign(0, Request((1, 2), 1, SamplingConfig(0.9, 9, 0.9, 0.01, 0.3, -0.1, 1.2), logit_bias={3: 1.0}))
    sampler.count(torch.tensor([4]), torch.tensor([1]))
    sampler.assign(0, Request((0,), 0, SamplingConfig(0)))
    assert all(torch.equal(tensor, getattr(sampler.rules, name)) for name, tensor in fresh.items())
