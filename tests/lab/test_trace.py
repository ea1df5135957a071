"""Traces: every activation by name, from a model that is not changed by looking."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, MODERN, Subject
from torch import Tensor

import quill
from quill.errors import ConfigError, TokenizerError
from quill.lab import trace as tracing
from quill.lab.subject import attention_of, inference
from quill.lab.trace import Store, record, trace
from quill.model.config import ModelConfig

TEXT = "abcabcdead"


def logits_of(subject: Subject, tokens_BT: Tensor) -> Tensor:
    with inference(subject.model):
        return subject.model(tokens_BT)


def test_tracing_changes_no_logit_and_leaves_nothing_behind(subject: Subject) -> None:
    tokens_BT = torch.from_numpy(subject.tokenizer.encode(TEXT))[None]
    before, state = logits_of(subject, tokens_BT), copy.copy(vars(attention_of(subject.model, 0)))
    random_state, training = torch.get_rng_state(), subject.model.training
    found = trace(subject, TEXT)
    assert np.array_equal(found["logits_TV"], before[0].numpy())
    assert torch.equal(logits_of(subject, tokens_BT), before)
    assert vars(attention_of(subject.model, 0)) == state
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert subject.model.training == training


def test_a_trace_that_fails_leaves_no_hook_behind(subject: Subject) -> None:
    class Full(Store):
        def add(self, name: str, tensor: Tensor) -> None:
            if name.startswith("blocks.1."):
                raise MemoryError

    with pytest.raises(MemoryError):
        record(subject.model, torch.zeros(1, 4, dtype=torch.int64), Full("*", batch=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    assert not any("attend" in vars(module) or "project" in vars(module) for module in subject.model.modules())


def test_a_trace_has_every_activation_in_the_shape_that_its_name_says(subject: Subject) -> None:
    config = subject.model.config
    sizes = {
        "T": len(TEXT), "S": len(TEXT), "D": config.n_embd, "H": config.n_head, "E": config.n_embd // config.n_head,
        "F": 4 * config.n_embd, "V": config.vocab_size, "B": 2,
    }  # fmt: skip
    one = trace(subject, TEXT)
    tokens_T = subject.tokenizer.encode(TEXT)
    batch = trace(subject, np.stack([tokens_T, tokens_T[::-1]]))
    assert len(one) == len(batch) == 3 + 11 * config.n_layer
    for name, array in [*one.items(), *batch.items()]:
        assert array.shape == tuple(sizes[letter] for letter in name.rsplit("_", 1)[1]), name
        assert array.dtype == np.float32
    for name, array in one.items():
        base, shape = name.rsplit("_", 1)
        np.testing.assert_allclose(batch[f"{base}_B{shape}"][0], array, atol=1e-4, err_msg=name)
    assert one.labels == list(TEXT)


def test_attention_rows_sum_to_one_and_see_no_later_token(subject: Subject) -> None:
    found = trace(subject, TEXT, "*.weights_*")
    assert len(found) == subject.model.config.n_layer
    for weights_HTS in found.values():
        np.testing.assert_allclose(weights_HTS.sum(-1), 1, atol=1e-6)
        assert (np.triu(weights_HTS, 1) == 0).all()


def test_heads_are_weights_times_values(subject: Subject) -> None:
    found = trace(subject, TEXT)
    for layer in range(subject.model.config.n_layer):
        of = f"blocks.{layer}.attention."
        mixed_HTE = found[of + "weights_HTS"] @ found[of + "v_HSE"]
        np.testing.assert_allclose(found[of + "heads_HTE"], mixed_HTE, atol=1e-4)


def test_the_residual_stream_is_what_blocks_add_to_it(subject: Subject) -> None:
    found, config = trace(subject, TEXT), subject.model.config
    skips = dict(subject.model.named_parameters()).get("embedding_skip", torch.zeros(config.n_layer)).tolist()
    x_TD = found["embedding_TD"]
    for layer in range(config.n_layer):
        of = f"blocks.{layer}."
        if skips[layer]:
            x_TD = x_TD + skips[layer] * found["embedding_TD"]
        np.testing.assert_allclose(found[of + "input_TD"], x_TD, atol=1e-4)
        x_TD = x_TD + found[of + "attention.output_TD"]
        np.testing.assert_allclose(found[of + "middle_TD"], x_TD, atol=1e-4)
        x_TD = x_TD + found[of + "feed_forward.output_TD"]
        np.testing.assert_allclose(found[of + "output_TD"], x_TD, atol=1e-4)


def test_only_what_is_asked_for_is_kept(subject: Subject) -> None:
    assert list(trace(subject, TEXT, "logits_TV")) == ["logits_TV"]
    assert list(trace(subject, TEXT, ["logits_*", "blocks.1.output_TD"])) == ["blocks.1.output_TD", "logits_TV"]
    with pytest.raises(ConfigError, match="selects no activation"):
        trace(subject, TEXT, "nothing")
    with pytest.raises(ConfigError, match="did you mean"):
        trace(subject, TEXT)["logits_BTV"]


def test_activations_beyond_the_limit_lie_in_files_that_go_with_the_trace(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = trace(subject, TEXT)
    monkeypatch.setattr(tracing, "MOST_MEMORY", 2000)
    on_disk = trace(subject, TEXT)
    files = [Path(str(array.filename)) for array in on_disk.values() if isinstance(array, np.memmap)]
    assert len(files) > 10 and all(file.exists() for file in files)
    assert all(np.array_equal(array, in_memory[name]) for name, array in on_disk.items())
    del on_disk
    assert not any(file.exists() for file in files)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ConfigError, "the text is empty"),
        ("a" * 17, ConfigError, "17 tokens, and the model's context is block_size=16"),
        ("abz", TokenizerError, "'z'"),
        ([], ConfigError, "shape"),
        ([[0, 1], [2]], ConfigError, "differ in length"),
        ([0, 11], ConfigError, "outside the vocabulary"),
        ([-1], ConfigError, "outside the vocabulary"),
        ([0.5], ConfigError, "whole numbers"),
        ([[[0]]], ConfigError, "shape"),
    ],
)
def test_a_text_that_cannot_be_traced_is_refused_in_one_line(
    make_subject: Callable[..., Subject], text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        trace(make_subject(CLASSIC), text)
    assert "\n" not in str(caught.value)


def test_an_edited_attention_is_traced_by_its_own_formula(
    make_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(CLASSIC)
    kind: Any = type(attention_of(subject.model, 0))
    formula = kind.attention_weights
    monkeypatch.setattr(kind, "attention_weights", lambda self, x, cache=None: formula(self, x).square())
    before = trace(make_subject(CLASSIC), TEXT, "*.weights_*")
    monkeypatch.undo()
    for name, plain in trace(subject, TEXT, "*.weights_*").items():
        np.testing.assert_allclose(before[name], plain**2, atol=1e-6)


@pytest.mark.parametrize("config", [replace(CLASSIC, n_layer=1), replace(MODERN, n_layer=1)], ids=["classic", "modern"])
def test_a_block_of_another_kind_is_traced_as_far_as_it_has_parts(
    config: ModelConfig, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(config)
    block: Any = subject.model.blocks[0]
    block.forward = lambda x_BTD, cache=None: x_BTD + block.feed_forward(block.feed_forward_norm(x_BTD))
    del block.attention
    assert {name.split("_")[0] for name in trace(subject, TEXT)} == {
        "embedding", "blocks.0.input", "blocks.0.middle", "blocks.0.feed", "blocks.0.output", "final", "logits",
    }  # fmt: skip


def test_a_loaded_model_is_traced_by_the_public_name(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(MODERN)
    model = quill.LanguageModel(subject.model, subject.tokenizer)
    np.testing.assert_array_equal(quill.trace(model, TEXT)["logits_TV"], model.logits(TEXT).numpy())
