"""Laws of choosing by rows: for each row it is the choice of `sampling.py`, whoever else chooses beside it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quill.engines.request import Request, SamplingConfig
from quill.engines.row_sampling import ALL_STAGES, RowSampling, stages_of
from quill.engines.sampling import adjust, choose_tokens


@st.composite
def wishes(draw: st.DrawFn) -> Request:
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


@settings(max_examples=300, deadline=None)
@given(st.lists(wishes(), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.booleans())
def test_choosing_by_rows_is_the_choice_of_sampling_for_each_of_them(
    wishes: list[Request], seed: int, tied: bool
) -> None:
    random_numbers = torch.Generator().manual_seed(seed)
    B, V = len(wishes), 40
    logits_BV = 3 * torch.randn(B, V, generator=random_numbers)
    if tied:
        logits_BV = logits_BV.round()
    uniform_B = torch.rand(B, generator=random_numbers)
    rows = RowSampling(B, V, torch.device("cpu"))
    for place, wish in enumerate(wishes):
        rows.assign(place, wish)
    rows.counts_BV.copy_(torch.randint(0, 3, (B, V), generator=random_numbers))
    expected = [
        choose_tokens(
            adjust(logits_BV[i], wish.sampling, rows.bias_BV[i], rows.seen_BV[i], rows.counts_BV[i])[None],
            wish.sampling,
            uniform_B[i : i + 1],
        ).item()
        for i, wish in enumerate(wishes)
    ]
    assert rows.choose(logits_BV, uniform_B, stages_of(wishes)).tolist() == expected
    assert rows.choose(logits_BV, uniform_B, ALL_STAGES).tolist() == expected  # who wants nothing notices nothing


def test_a_place_that_is_taken_again_forgets_the_wishes_before() -> None:
    rows = RowSampling(1, 5, torch.device("cpu"))
    fresh = {name: tensor.clone() for name, tensor in vars(rows).items() if isinstance(tensor, Tensor)}
    rows.assign(0, Request((1, 2), 1, SamplingConfig(0.9, 9, 0.9, 0.01, 0.3, -0.1, 1.2), logit_bias={3: 1.0}))
    rows.count(torch.tensor([4]), torch.tensor([1]))
    rows.assign(0, Request((0,), 0, SamplingConfig(0)))
    assert all(torch.equal(tensor, getattr(rows, name)) for name, tensor in fresh.items())
