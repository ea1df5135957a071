"""Neuron cards: what activates a neuron and what it makes likelier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, LETTERS, MODERN, Subject

from quill.errors import ConfigError, CorpusError
from quill.lab.ablation.cost import text_windows
from quill.lab.roles.neurons import agreement, neuron_cards, shuffled
from quill.lab.trace import trace

TEXT = "".join(np.random.default_rng(0).choice(list(LETTERS), 400))


def test_a_card_shows_the_strongest_activation_of_each_window(subject: Subject) -> None:
    found = neuron_cards(subject, TEXT, 1, neurons=[5], contexts=3, context_length=4)
    windows_NT = text_windows(subject, TEXT)
    hidden_NTF = trace(subject, windows_NT[:, :-1], "blocks.1.*hidden*")["blocks.1.feed_forward.hidden_BTF"]
    strongest_N = hidden_NTF[:, :, 5].max(1)
    card = found.cards[0]
    np.testing.assert_allclose([a for _, _, a in card.contexts], np.sort(strongest_N)[::-1][:3], atol=1e-5)
    window, end = int(strongest_N.argmax()), int(hidden_NTF[strongest_N.argmax(), :, 5].argmax()) + 1
    text = subject.tokenizer.decode(windows_NT[window].numpy())
    assert card.contexts[0][:2] == (text[max(0, end - 4) : end], text[end])


def test_the_tokens_of_a_card_are_those_of_the_value_vector_through_norm_and_head(subject: Subject) -> None:
    card = neuron_cards(subject, TEXT, 2, neurons=[7], tokens=11).cards[0]
    model: Any = subject.model
    with torch.no_grad():
        value_D = model.blocks[2].feed_forward.output.weight[:, 7]
        said_V = model.head(model.final_norm(value_D)) - model.head(model.final_norm(torch.zeros(8)))
    said_V -= said_V.mean()
    expected = {subject.tokenizer.decode([token]): float(said_V[token]) for token in range(11)}
    assert dict(card.raised) == pytest.approx(expected, abs=1e-4)
    assert card.raised == card.lowered[::-1]
    assert [value for _, value in card.raised] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-4)


def test_a_neuron_made_to_know_what_follows_agrees_and_shuffled_ones_do_not(
    make_subject: Callable[..., Subject],
) -> None:
    """Neuron i of the last layer sees token i, and raises token i + 1, which always follows."""
    subject = make_subject(replace(CLASSIC, n_embd=16), std=0.01)
    model: Any = subject.model
    feed_forward = model.blocks[2].feed_forward
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.eye(11, 16))
        unit_VD = torch.nn.functional.normalize(
            model.token_embedding.weight - model.token_embedding.weight.mean(1, True), dim=1
        )
        feed_forward.hidden.weight[:11] = 3 * unit_VD
        feed_forward.output.weight[:, :11] = unit_VD.roll(-1, 0).T
        for norm in [each for name, each in model.named_modules() if "norm" in name]:
            norm.weight.fill_(1)
    ordered = subject.tokenizer.decode(np.arange(11)) * 40
    found = neuron_cards(subject, ordered, 2, tokens=1, contexts=4)
    known = found.agreement_F[:11]
    assert known.mean() == 1 and found.shuffled_F[:11].mean() < 0.3
    assert found.difference.mean == pytest.approx(float((found.agreement_F - found.shuffled_F).mean()))


def test_the_agreement_is_a_share_of_followers() -> None:
    followers_KF = np.array([[1, 2], [3, 2]])
    assert agreement(followers_KF, np.array([[1, 0], [5, 6]])).tolist() == [0.5, 0.0]
    assert agreement(followers_KF, np.array([[1, 3], [2, 6]])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("count", [2, 3, 32, 1000])
def test_shuffling_pairs_every_neuron_with_another(count: int) -> None:
    other = shuffled(count, seed=1)
    assert sorted(other.tolist()) == list(range(count)) and (other != np.arange(count)).all()


def test_the_same_seed_gives_the_same_cards(make_subject: Callable[..., Subject]) -> None:
    for config in (CLASSIC, MODERN):
        subject, state = make_subject(config), torch.get_rng_state()
        first, again = (neuron_cards(subject, TEXT, 0, seed=2) for _ in range(2))
        assert first.to_json() == again.to_json() and torch.equal(torch.get_rng_state(), state)
        assert len(first.cards) == 6 and len(first.agreement_F) == 32
        assert first.png().startswith(b"\x89PNG")


def test_a_neuron_or_layer_that_does_not_exist_is_refused(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    cases: list[tuple[int, dict[str, Any], str]] = [
        (3, {}, "layer=3"), (0, {"neurons": [32]}, "neuron=32"), (0, {"count": 0}, "count=0"),
    ]  # fmt: skip
    for layer, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            neuron_cards(subject, TEXT, layer, **options)
    with pytest.raises(CorpusError):
        neuron_cards(subject, "abc", 0)
