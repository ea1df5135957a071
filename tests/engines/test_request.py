"""Requests are checked before anything is computed, and every engine is given the same numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from quill.engines.base import Engine
from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import make_engine
from quill.engines.request import FORBIDDEN, LIMIT, Request, SamplingConfig
from quill.errors import ConfigError
from quill.generation.batch_generator import BatchGenerator
from quill.model.build import build_model
from quill.model.config import GPTConfig

V = 11
ENGINES = [("torch", None), ("numba", None), ("numba", "int8"), ("cuda", None)]
each_engine = pytest.mark.parametrize(("name", "quantization"), ENGINES)


def engine_of(name: str, quantization: str | None) -> Engine:
    """Any engine on a CPU, where the one for GPUs does its steps one operation after another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(GPTConfig(V, block_size=16, n_layer=1, n_head=2, n_embd=16)).eval()
    return (
        CudaEngine(model, slots=8) if name == "cuda" else make_engine(model, name, quantization=quantization, slots=8)
    )


def written(engine: Engine, *requests: Request) -> list[int]:
    """Return the tokens of the first request, then those of the next, and so on."""
    rows: list[list[int]] = [[] for _ in requests]
    for row, event in BatchGenerator(engine).follow(requests):
        rows[row] += [event.token.token_id] if event.token else []
    return [token for row in rows for token in row]


WRONG_BIASES: list[Any] = [
    {3: math.nan}, {3: None}, {3: "5"}, {3: 1e39}, {3: -1e39}, {3: 10**400}, {3: -math.inf}, {3: True}, {3: [1]},
    {3.0: 1.0}, {None: 1.0}, {(1,): 1.0}, {True: 1.0}, [3], "3", 3, None,
]  # fmt: skip


@pytest.mark.parametrize("biases", WRONG_BIASES, ids=str)
def test_an_impossible_logit_bias_is_an_error_of_one_line(biases: Any) -> None:
    # W6
    with pytest.raises(ConfigError, match="logit_bias=") as caught:
        Request((1,), 1, logit_bias=biases)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1e39), ("temperature", 10**400), ("temperature", math.inf), ("temperature", math.nan),
        ("temperature", "1"), ("temperature", True), ("temperature", np.bool_(True)), ("temperature", None),
        ("presence_penalty", 1e39), ("presence_penalty", -1e39), ("presence_penalty", math.nan),
        ("frequency_penalty", 10**400), ("frequency_penalty", -math.inf), ("frequency_penalty", [1]),
        ("repetition_penalty", 1e-50), ("repetition_penalty", 1e39), ("repetition_penalty", 0),
        ("top_k", 2.0), ("top_k", True), ("top_k", "3"), ("top_p", 1.5), ("top_p", "0.5"), ("min_p", math.nan),
    ],
)  # fmt: skip
def test_an_impossible_sampling_setting_is_an_error_of_one_line(name: str, value: Any) -> None:
    # W6, W14
    with pytest.raises(ConfigError, match=f"^{name}=") as caught:
        SamplingConfig(**{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_numpy_numbers_are_accepted() -> None:
    # W14
    how = SamplingConfig(np.float32(0.5), np.int64(3), np.float64(0.9), presence_penalty=np.float16(1))  # type: ignore
    assert how == SamplingConfig(0.5, 3, 0.9, presence_penalty=1.0)
    assert all(type(value) in (int, float, type(None)) for value in vars(how).values())
    request = Request((1,), np.int32(4), how, np.uint64(2**64 - 1), np.int8(2), {np.int64(3): np.float32(0.5)})  # type: ignore
    assert request == Request((1,), 4, how, 2**64 - 1, 2, {3: 0.5})


@each_engine
@pytest.mark.parametrize("how", [
    SamplingConfig(0), SamplingConfig(), SamplingConfig(3.4e38), SamplingConfig(1e-45), SamplingConfig(top_k=5),
    SamplingConfig(repetition_penalty=3e38), SamplingConfig(presence_penalty=3e38, frequency_penalty=3e38),
    SamplingConfig(top_p=0.999, min_p=0.5), SamplingConfig(top_p=1e-46, repetition_penalty=2e-38),
])  # fmt: skip
def test_an_infinite_bias_allows_no_other_token(name: str, quantization: str | None, how: SamplingConfig) -> None:
    # W6: +inf gave the forced token in 0 of 2,000 draws
    engine = engine_of(name, quantization)
    requests = [Request((1, 7), 12, how, seed, logit_bias={7: math.inf, 3: 5.0}) for seed in range(8)]
    assert set(written(engine, *requests)) == {7}


@each_engine
def test_among_tokens_with_infinite_bias_the_model_chooses(name: str, quantization: str | None) -> None:
    # W6: their odds are those of the model among these tokens
    engine, forced = engine_of(name, quantization), {2: math.inf, 5: math.inf, 9: math.inf}
    tokens = written(engine, *[Request((1,), 1, seed=seed, logit_bias=forced) for seed in range(2000)])
    logits_V = engine.logits([1])[0].astype(np.float64)
    expected = np.exp(logits_V[list(forced)]) / np.exp(logits_V[list(forced)]).sum()
    counts = np.array([tokens.count(token) for token in forced])
    assert counts.sum() == 2000
    assert ((counts - 2000 * expected) ** 2 / (2000 * expected)).sum() < 13.8  # chi-square, 2 degrees, p = 0.001


@each_engine
def test_any_accepted_numbers_give_the_same_tokens_in_every_engine(name: str, quantization: str | None) -> None:
    # W6, W7: extreme numbers overflowed to NaN, differently in each engine
    if quantization:
        pytest.skip("int8 has other logits")
    extremes = [
        SamplingConfig(1.0, presence_penalty=a, frequency_penalty=b, repetition_penalty=c, top_p=d)
        for a, b in [(-3.4e38, -3.4e38), (3.4e38, 3.4e38), (0.0, 3.4e38), (-3.4e38, 0.0)]
        for c in (1.2e-38, 3.4e38)
        for d in (1e-46, None)
    ]
    biases = [{}, {4: 3.4e38}, {4: -3.4e38, 5: 3e38}, {token: -3.4e38 for token in range(V)}]
    requests = [Request((1, 4), 5, how, 3, logit_bias=bias) for how in extremes for bias in biases]
    assert written(engine_of(name, None), *requests) == written(engine_of("torch", None), *requests)


@each_engine
@pytest.mark.parametrize("top_p", [1e-46, 1e-320, 1.2e-38])
def test_the_smallest_top_p_takes_the_likeliest(name: str, quantization: str | None, top_p: float) -> None:
    # W7: an IndexError in the torch engine
    engine = engine_of(name, quantization)
    likeliest = written(engine, Request((1,), 20, SamplingConfig(0)))
    assert written(engine, Request((1,), 20, SamplingConfig(1.5, top_p=top_p), seed=5)) == likeliest


def test_engines_are_given_numbers_within_the_limits() -> None:
    request = Request((1,), 1, SamplingConfig(1e38, top_p=1e-300, repetition_penalty=1e-20), logit_bias={3: -3e38})
    limited = request.for_engine(V)
    assert limited.logit_bias == {3: -LIMIT} and limited.sampling.temperature == LIMIT
    assert np.float32(limited.sampling.top_p) > 0 and limited.sampling.repetition_penalty == 1e-7
    forced = Request((1,), 1, logit_bias={3: math.inf, 4: 2.0}).for_engine(V)
    assert forced.logit_bias == {token: FORBIDDEN for token in range(V) if token != 3}


def test_an_ordinary_request_is_given_to_engines_unchanged() -> None:
    request = Request((1,), 1, SamplingConfig(0.8, 40, 0.9, 0.05, 0.5, 0.5, 1.2), logit_bias={3: -100.0})
    assert request.for_engine(V) is request
