"""The pruning curve: heads in order of importance against random order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, LETTERS, MODERN, Subject, one_of_each_architecture_in_core

from quill.lab.ablation.ablating import editing_weights
from quill.lab.ablation.cost import ablate, text_windows
from quill.lab.ablation.pruning import head_importance, prune_heads
from quill.lab.ablation.targets import Head
from quill.lab.hooks import replacing_heads
from quill.lab.windows import losses_per_window

TEXT = "".join(np.random.default_rng(0).choice(list(LETTERS), 400))


def test_importance_is_the_derivative_of_the_loss_by_the_factor_of_a_head(subject: Subject) -> None:
    model, tokens_NT = subject.model.double(), text_windows(subject, TEXT, 5)
    importance_LH, step = head_importance(model, tokens_NT), 1e-3

    def losses_with(factor: float) -> np.ndarray:
        scale = torch.tensor([1.0, factor])[:, None, None]
        with replacing_heads(model, 1, lambda heads_BHTE: heads_BHTE * scale):
            return losses_per_window(model, tokens_NT)

    expected = np.abs(losses_with(1 + step) - losses_with(1 - step)).mean() / (2 * step)
    assert importance_LH[1, 1] == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_head_whose_output_is_not_read_has_no_importance_and_goes_first(subject: Subject) -> None:
    with editing_weights(subject.model, "head:1.0"):
        curve = prune_heads(subject, TEXT, random_orders=1)
    assert curve.importance_LH[1, 0] == 0 and curve.order[0] == Head(1, 0)
    assert np.array_equal(curve.losses_KN[0], curve.losses_KN[1])


@one_of_each_architecture_in_core
def test_the_curve_starts_with_the_whole_model_and_ends_without_heads(subject: Subject) -> None:
    curve = prune_heads(subject, TEXT, seed=4)
    tokens_NT = text_windows(subject, TEXT)[1::2]
    assert curve.removed_K == list(range(7)) and len(curve.order) == 6
    assert np.array_equal(curve.losses_KN[0], losses_per_window(subject.model, tokens_NT))
    assert np.array_equal(curve.losses_KN[-1], ablate(subject, curve.order, tokens_NT).ablated_N)
    np.testing.assert_allclose(curve.random_RKN[:, -1], np.tile(curve.losses_KN[-1], (3, 1)), atol=1e-6)
    assert np.array_equal(prune_heads(subject, TEXT, seed=4).random_RKN, curve.random_RKN)
    assert not np.array_equal(prune_heads(subject, TEXT, seed=5).random_RKN, curve.random_RKN)


def test_pruning_leaves_the_model_as_it_was(subject: Subject) -> None:
    before, state, training = losses_per_window(subject.model, text_windows(subject, TEXT)), torch.get_rng_state(), True
    subject.model.train(training)
    prune_heads(subject, TEXT, random_orders=1, points=2)
    assert subject.model.training == training and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(losses_per_window(subject.model, text_windows(subject, TEXT)), before)


def test_the_curve_has_numbers_and_a_picture(make_subject: Callable[..., Subject]) -> None:
    for config in (CLASSIC, MODERN):
        curve = prune_heads(make_subject(config), TEXT, points=3)
        assert curve.removed_K == [0, 3, 6]
        assert curve.png().startswith(b"\x89PNG") and '"heads_removed"' in curve.to_json()
