"""The probabilities of the next token before and after the sampling rules."""

from typing import Any

import numpy as np
import pytest
import torch
from reference_sampling import adjust, apply_min_p, apply_temperature, apply_top_k, apply_top_p

from quill.engines.request import Request, SamplingConfig
from quill.generation.alternatives import alternatives

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))


def after(generated: list[int] | None = None, **settings: Any) -> list[float]:
    request = Request((0,), 1, SamplingConfig(**settings))
    return alternatives(LOGITS, request, generated or []).after_V.tolist()


def test_before_the_rules_the_probabilities_are_those_of_the_model() -> None:
    request = Request((0,), 1, SamplingConfig(temperature=0.3, top_k=2))
    np.testing.assert_allclose(alternatives(LOGITS, request, []).before_V, [0.5, 0.3, 0.15, 0.05], rtol=1e-6)


def test_without_rules_both_are_equal() -> None:
    np.testing.assert_allclose(after(), [0.5, 0.3, 0.15, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"min_p": 0.5}, [0.625, 0.375, 0, 0]),
    ],
)
def test_each_rule_gives_the_probabilities_of_its_definition(settings: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(after(**settings), expected, atol=1e-6)


def test_a_frequency_penalty_counts_the_generated_tokens_and_not_the_prompt() -> None:
    weights = np.array([0.5, 0.3 / 4, 0.15, 0.05])
    np.testing.assert_allclose(after([1, 1], frequency_penalty=np.log(2)), weights / weights.sum(), rtol=1e-5)


def test_a_repetition_penalty_counts_the_prompt_too() -> None:
    weights = np.array([0.5**2, 0.3, 0.15**2, 0.05])
    np.testing.assert_allclose(after([2], repetition_penalty=2.0), weights / weights.sum(), rtol=1e-5)


def test_all_rules_together_are_those_of_the_reference() -> None:
    config = SamplingConfig(0.7, 6, 0.9, 0.05, 0.3, 0.2, 1.3)
    logits_V = torch.randn(10, generator=torch.Generator().manual_seed(1))
    prompt, generated = (1, 4), [4, 7, 7]
    seen_V, counts_V = torch.zeros(10), torch.zeros(10)
    seen_V[list(prompt)] = 1
    for token in generated:
        counts_V[token] += 1
    adjusted_V = adjust(logits_V, config, torch.zeros(10), seen_V, counts_V)
    kept_1V = apply_top_k(apply_temperature(adjusted_V[None], 0.7), 6)
    expected_V = apply_min_p(apply_top_p(kept_1V, 0.9), 0.05).softmax(-1)[0]
    found = alternatives(logits_V.numpy(), Request(prompt, 1, config), generated)
    np.testing.assert_allclose(found.after_V, expected_V.numpy(), rtol=1e-5)
