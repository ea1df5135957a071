"""Influence: what the prediction at one position owes to the token at another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, LETTERS, MODERN, Subject

from quill.errors import ConfigError
from quill.lab.ablation.ablating import ablating
from quill.lab.subject import inference
from quill.lab.token_influence import draw_replacements, influence

TEXT = "abcabcdeadhhgj\na"
ATTENTION = ["attention:0", "attention:1", "attention:2"]


def test_without_attention_and_n_grams_influence_is_exactly_diagonal(subject: Subject) -> None:
    ngrams = ["ngrams"] if getattr(subject.model.config, "ngram", 1) > 1 else []
    with ablating(subject.model, ATTENTION + ngrams):
        found = influence(subject, TEXT, draws=3)
    assert np.count_nonzero(found.influence_TS - np.diag(np.diagonal(found.influence_TS))) == 0
    assert (np.diagonal(found.influence_TS) > 0).all() and found.share_from_others() == 0
    assert influence(subject, TEXT, draws=3).share_from_others() > 0.01


def test_n_gram_tables_alone_reach_as_far_as_the_longest_n_gram(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(MODERN)
    with ablating(subject.model, ATTENTION):
        reach = influence(subject, TEXT, draws=3).by_distance()
    assert (reach[:3] > 0).all() and not reach[3:].any()


def test_influence_is_the_divergence_by_its_definition(subject: Subject) -> None:
    tokens_T, seed = subject.tokenizer.encode(TEXT), 7
    found = influence(subject, TEXT, draws=2, seed=seed)
    replacements_RS = draw_replacements(tokens_T, np.full(11, 1 / 11), 2, seed)
    for t, s in ((5, 2), (9, 9), (15, 0)):
        values = []
        for replacements_S in replacements_RS:
            other_T = tokens_T.copy()
            other_T[s] = replacements_S[s]
            with inference(subject.model):
                p_V, q_V = subject.model(torch.from_numpy(np.stack([tokens_T, other_T])))[:, t].double().softmax(-1)
            values.append(float((p_V * (p_V / q_V).log()).sum()))
        assert found.influence_TS[t, s] == pytest.approx(np.mean(values), rel=1e-3, abs=1e-8)


def test_no_token_influences_an_earlier_prediction(subject: Subject) -> None:
    found = influence(subject, TEXT, draws=2)
    assert not np.triu(found.influence_TS, 1).any() and (found.influence_TS >= 0).all()
    assert found.influence_TS.shape == (16, 16) and found.labels == list(TEXT)


def test_the_same_seed_gives_the_same_influence(make_subject: Callable[..., Subject]) -> None:
    subject, state = make_subject(CLASSIC), torch.get_rng_state()
    first, again, other = (influence(subject, TEXT, seed=seed).influence_TS for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_influence_does_not_depend_on_how_many_rows_are_computed_at_once(
    make_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(MODERN)
    whole = influence(subject, TEXT).influence_TS
    monkeypatch.setattr("quill.lab.token_influence.MOST_LOGITS", 16 * 11 * 3)
    np.testing.assert_allclose(influence(subject, TEXT).influence_TS, whole, atol=1e-6)


def test_replacements_follow_the_frequencies_of_the_reference_and_never_repeat_the_token() -> None:
    tokens_S = np.array([0, 1, 2, 3])
    drawn_RS = draw_replacements(tokens_S, np.array([0.5, 0.25, 0.25, 0.0]), 20_000, seed=0)
    assert not (drawn_RS == tokens_S).any() and not (drawn_RS == 3).any()
    assert (drawn_RS[:, 0] == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (drawn_RS[:, 1] == 0).mean() == pytest.approx(2 / 3, abs=0.02)


def test_a_reference_text_chooses_the_replacements(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    only_b = influence(subject, "aaaa", reference="ab", draws=5)
    np.testing.assert_allclose(
        only_b.influence_TS, influence(subject, "aaaa", reference="ab", draws=1).influence_TS, rtol=1e-12
    )


def test_what_has_no_influence_to_measure_is_refused(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    with pytest.raises(ConfigError, match="draws=0"):
        influence(subject, TEXT, draws=0)
    with pytest.raises(ConfigError, match="give one text"):
        influence(subject, np.array([[0, 1], [1, 2]]))
    with pytest.raises(ConfigError, match="fewer than two different tokens"):
        influence(subject, TEXT, reference="aaa")
    with pytest.raises(ConfigError, match="the text is empty"):
        influence(subject, "")
    with pytest.raises(ConfigError, match="single token"):
        influence(make_subject(replace(CLASSIC, vocab_size=1)), [0, 0])


def test_influence_has_numbers_and_a_picture(make_subject: Callable[..., Subject]) -> None:
    found = influence(make_subject(MODERN), LETTERS, draws=1)
    assert found.png().startswith(b"\x89PNG") and '"by_distance"' in found.to_json()
