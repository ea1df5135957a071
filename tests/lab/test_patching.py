"""Activation patching: an activation of one text in another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, MODERN, Subject, induction_subject, one_of_each_architecture_in_core

from quill.errors import ConfigError
from quill.lab.ablation.patching import KINDS, patch
from quill.lab.subject import inference
from quill.lab.trace import trace

CLEAN, CORRUPTED = "abcabfgh", "abeabfgj"


def test_the_end_of_the_residual_stream_carries_everything_and_other_positions_nothing(subject: Subject) -> None:
    share = patch(subject, CLEAN, CORRUPTED, answers=("a", "d"), kinds=["residual"]).shares["residual"]
    assert share.shape == (4, 8)
    assert share[-1, -1] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(share[-1, :-1], 0, atol=1e-3)


def test_patching_at_a_position_before_the_texts_differ_restores_nothing(subject: Subject) -> None:
    found = patch(subject, CLEAN, CORRUPTED, answers=("a", "d"))
    for kind in ("residual", "attention", "feed_forward"):
        np.testing.assert_allclose(found.shares[kind][:, :2], 0, atol=1e-3)  # type: ignore[index]


def test_the_input_of_the_first_block_carries_all_where_one_token_differs(make_subject: Callable[..., Subject]) -> None:
    found = patch(make_subject(CLASSIC), "abcdeabd", "abfdeabd", answers=(1, 2), kinds=["residual"])
    share = found.shares["residual"][0]
    assert share[2] == pytest.approx(1, abs=1e-3) and np.delete(share, 2) == pytest.approx(0, abs=1e-3)


def test_a_patched_part_gives_the_logits_of_the_model_written_out(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    found, model = patch(subject, CLEAN, CORRUPTED, answers=("a", "d")), subject.model
    clean, corrupted = trace(subject, CLEAN), trace(subject, CORRUPTED)
    first, second = (int(subject.tokenizer.encode(each)[0]) for each in "ad")

    def share_of(x_TD: np.ndarray) -> float:
        with inference(model):
            logits_V = model.head(model.final_norm(torch.from_numpy(x_TD)))[-1]
        difference = float(logits_V[first] - logits_V[second])
        return (difference - found.difference_corrupted) / (found.difference_clean - found.difference_corrupted)

    last = "blocks.2.feed_forward.output_TD"
    x_TD = corrupted["blocks.2.output_TD"].copy()
    x_TD[-1] += clean[last][-1] - corrupted[last][-1]
    assert found.shares["feed_forward"][2, -1] == pytest.approx(share_of(x_TD), abs=1e-3)
    heads_HTE = corrupted["blocks.2.attention.heads_HTE"].copy()
    heads_HTE[1] = clean["blocks.2.attention.heads_HTE"][1]
    block: Any = model.blocks[2]
    with inference(model):
        x_TD = torch.from_numpy(corrupted["blocks.2.input_TD"])
        x_TD = x_TD + block.attention.output(torch.from_numpy(heads_HTE).transpose(0, 1).flatten(1))
        x_TD = x_TD + block.feed_forward(block.feed_forward_norm(x_TD))
    assert found.shares["head"][2, 1] == pytest.approx(share_of(x_TD.numpy()), abs=1e-3)


def test_patching_a_text_into_itself_restores_nothing_of_another_difference(subject: Subject) -> None:
    """The activation of an equal text changes no logit, at any place."""
    from quill.lab.ablation.patching import patched_logits

    tokens_T = torch.from_numpy(subject.tokenizer.encode(CLEAN))
    usual_V = trace(subject, CLEAN, "logits_TV")["logits_TV"][-1]
    for kind in KINDS:
        patched = patched_logits(subject.model, kind, tokens_T, tokens_T, 7)
        np.testing.assert_allclose(patched, np.broadcast_to(usual_V, patched.shape), atol=1e-4)


def test_patching_finds_the_induction_head_set_by_hand() -> None:
    found = patch(induction_subject(), "abcdefa", "agcdefa", answers=("b", "g"))
    assert found.difference_clean > 1 and found.difference_corrupted < -1
    assert found.shares["head"][1, 0] == pytest.approx(1, abs=1e-3)
    assert np.abs(found.shares["head"][1, 1]) < 1e-3
    assert found.shares["attention"][1, 6] == pytest.approx(1, abs=1e-3)


@one_of_each_architecture_in_core
def test_patching_leaves_the_model_as_it_was_and_has_numbers_and_a_picture(subject: Subject) -> None:
    before = trace(subject, CLEAN, "logits_TV")["logits_TV"]
    found = patch(subject, CLEAN, CORRUPTED, answers=("a", "d"))
    assert found.png().startswith(b"\x89PNG") and '"difference_clean"' in found.to_json()
    assert np.array_equal(trace(subject, CLEAN, "logits_TV")["logits_TV"], before)
    assert found.to_json() == patch(subject, CLEAN, CORRUPTED, answers=("a", "d")).to_json()


def test_many_positions_are_patched_in_several_batches(
    make_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(MODERN)
    whole = patch(subject, CLEAN, CORRUPTED, answers=("a", "d")).shares
    monkeypatch.setattr("quill.lab.ablation.patching.ROWS", 3)
    for kind, share in patch(subject, CLEAN, CORRUPTED, answers=("a", "d")).shares.items():
        np.testing.assert_allclose(share, whole[kind], atol=1e-4)


def test_texts_that_cannot_be_compared_are_refused(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("abc", "ab", {}, "same number of tokens"),
        ("abc", "abc", {"answers": ("a", "b")}, "do not tell the texts apart"),
        ("abc", "abd", {"answers": ("a", "a")}, "do not tell the texts apart"),
        ("abc", "abd", {"answers": ("a", "bc")}, "token="),
        ("abc", "abd", {"answers": ("a", "b"), "position": 3}, "position=3"),
        ("abc", "abd", {"answers": ("a", "b"), "kinds": ["neuron"]}, "kind='neuron'"),
        ("", "", {}, "the text is empty"),
    ]
    for clean, corrupted, options, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            patch(subject, clean, corrupted, **options)
        assert "\n" not in str(caught.value)
