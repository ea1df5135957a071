"""Roles of heads: an induction head is found in a model that has one, and none in random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, LETTERS, MODERN, Subject, induction_subject

from quill.errors import ConfigError
from quill.lab.ablation.cost import ablate_each
from quill.lab.ablation.targets import Head
from quill.lab.roles.classify import best_offset, classify, head_roles, repeated_tokens, strength
from quill.lab.roles.patterns import (
    CLASSES,
    POSITIONAL,
    Score,
    class_pattern,
    induction_pattern,
    mass_by_offset,
    mean_distance,
    same_pattern,
)
from quill.lab.trace import trace
from quill.model.build import build_model

TEXT = "".join(np.random.default_rng(0).choice(list(LETTERS), 1000))


def uniform_attention(T: int) -> np.ndarray:
    return (np.tri(T) / np.arange(1, T + 1)[:, None])[None, None]


def looking_back(T: int, distance: int) -> np.ndarray:
    """Return weights_TS of a head that attends to the token a fixed distance back, or to itself where there is none."""
    queries_T = np.arange(T)
    return np.eye(T)[np.where(queries_T < distance, queries_T, queries_T - distance)]


def test_an_induction_head_set_by_hand_is_found_with_the_head_that_it_needs() -> None:
    found = head_roles(induction_subject(), TEXT)
    assert found.roles == [["previous token", "none"], ["induction", "none"]]
    assert found.heads_with("induction") == [Head(1, 0)] and found.role_of(0, 0) == "previous token"
    assert found.strength_LH[0, 0] > 0.99 and found.strength_LH[1, 0] > 0.9
    assert np.abs(found.strength_LH[:, 1]).max() < 0.05


def test_the_induction_head_set_by_hand_predicts_what_is_repeated() -> None:
    subject = induction_subject()
    right = []
    for tokens_T, period in repeated_tokens(subject.model.config, 20):
        guesses_T = trace(subject, tokens_T, "logits_TV")["logits_TV"].argmax(-1)
        right.append((guesses_T[period:-1] == tokens_T[period + 1 :]).mean())
    assert np.mean(right) > 0.85


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_no_head_of_random_weights_has_a_role(subject: Subject, seed: int) -> None:
    torch.manual_seed(seed)
    model = build_model(subject.model.config)
    found = head_roles(Subject(model, subject.tokenizer), TEXT)
    assert found.roles == [["none", "none"]] * 3


def test_no_head_of_large_random_weights_is_an_induction_head(subject: Subject) -> None:
    assert head_roles(subject, TEXT).heads_with("induction") == []


def test_uniform_attention_has_strength_0_in_every_role_and_a_head_of_a_role_has_1() -> None:
    tokens_T = np.array([3, 1, 2, 3, 1, 4, 1, 3])
    labels = list("a b\nB,ab")
    masks = [pattern(tokens_T) for pattern in POSITIONAL.values()] + [induction_pattern(tokens_T)]
    masks += [class_pattern(labels, member) for member in CLASSES.values()]
    for mask_TS in masks:
        score = Score(np.zeros((1, 1)))
        score.add(uniform_attention(8), mask_TS)
        assert strength(score.mean_LH, score.uniform)[0, 0] == pytest.approx(0, abs=1e-12)
        allowed_TS = np.tril(mask_TS)
        allowed_TS[allowed_TS.sum(1) == 0, 0] = True
        score = Score(np.zeros((1, 1)))
        score.add((allowed_TS / allowed_TS.sum(1, keepdims=True))[None, None], mask_TS)
        assert strength(score.mean_LH, score.uniform)[0, 0] == pytest.approx(1)
    offset_LH, score_LH, uniform_LH = best_offset(mass_by_offset(uniform_attention(32)))
    np.testing.assert_allclose(strength(score_LH, uniform_LH), 0, atol=1e-12)
    back_TS = looking_back(32, 5)
    offset_LH, score_LH, _ = best_offset(mass_by_offset(back_TS[None, None]))
    assert offset_LH[0, 0] == 5 and score_LH[0, 0] == 1


def test_patterns_are_those_of_a_text_worked_out_by_hand() -> None:
    tokens_T = np.array([0, 1, 0, 2, 0])  # a b a c a
    assert same_pattern(tokens_T).nonzero()[0].tolist() == [2, 4, 4]
    assert same_pattern(tokens_T).nonzero()[1].tolist() == [0, 0, 2]
    assert [*zip(*induction_pattern(tokens_T).nonzero(), strict=True)] == [(2, 1), (4, 1), (4, 3)]
    assert class_pattern(list("a b"), CLASSES["space"]).tolist() == [
        [False] * 3,
        [False, True, False],
        [False, True, False],
    ]


def test_every_printable_character_but_a_digit_is_in_one_class() -> None:
    for code in range(32, 127):
        members = [name for name, member in CLASSES.items() if member(chr(code))]
        assert len(members) == (0 if chr(code).isdigit() else 1), chr(code)
    assert not any(member("ab") or member("") for member in CLASSES.values())


def test_distance_is_that_of_the_attention() -> None:
    T = 9
    assert mean_distance(looking_back(T, 2)[None, None])[0, 0] == pytest.approx(2 * 7 / 9)
    assert mean_distance(uniform_attention(T))[0, 0] == pytest.approx((T - 1) / 4)


def test_repeated_tokens_differ_within_a_period_that_varies() -> None:
    texts = repeated_tokens(MODERN, 40, seed=2)
    for tokens_T, period in texts:
        assert len(tokens_T) == 2 * period <= MODERN.block_size and len({*tokens_T[:period].tolist()}) == period
        assert np.array_equal(tokens_T[:period], tokens_T[period:])
    assert {period for _, period in texts} == {4, 5, 6, 7, 8}
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(texts, repeated_tokens(MODERN, 40, seed=2), strict=True))
    assert repeated_tokens(replace(CLASSIC, block_size=3), 5) == []


def test_a_head_that_looks_back_a_fixed_distance_does_not_pass_for_induction() -> None:
    """Repetition with one fixed period could not tell them apart."""
    score = Score(np.zeros((1, 1)))
    for tokens_T, period in repeated_tokens(replace(CLASSIC, block_size=64, vocab_size=60), 40):
        T = len(tokens_T)
        score.add(looking_back(T, 24)[None, None], induction_pattern(tokens_T), np.arange(T) >= period)
    assert score.mean_LH[0, 0] < 0.2


def test_a_head_below_the_threshold_has_no_role() -> None:
    scores = {"self": np.array([[0.29, 0.31, 0.4]]), "first token": np.array([[0.1, 0.2, 0.5]])}
    roles, strength_LH = classify(scores, {"self": 0.0, "first token": 0.2})
    assert roles == [["none", "self", "self"]] and strength_LH[0, 2] == 0.4


@pytest.mark.parametrize("kind", ["modern", *(pytest.param(k, marks=pytest.mark.long) for k in ("classic", "by hand"))])
def test_the_same_seed_gives_the_same_roles_and_costs_are_shown(
    kind: str, make_subject: Callable[..., Subject]
) -> None:
    subject = induction_subject() if kind == "by hand" else make_subject(CLASSIC if kind == "classic" else MODERN)
    state = torch.get_rng_state()
    costs = ablate_each(subject, TEXT)
    first, again = (head_roles(subject, TEXT, costs=costs, seed=3) for _ in range(2))
    assert first.to_json() == again.to_json() and torch.equal(torch.get_rng_state(), state)
    assert first.cost_LH is not None and first.cost_LH[1, 0] == costs.cost_of(Head(1, 0)).mean
    assert first.png().startswith(b"\x89PNG") and head_roles(subject, TEXT).png()


def test_a_threshold_out_of_range_is_refused(make_subject: Callable[..., Subject]) -> None:
    with pytest.raises(ConfigError, match="threshold=0"):
        head_roles(make_subject(CLASSIC), TEXT, threshold=0)
