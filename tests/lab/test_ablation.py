"""Ablation: parts removed by hooks and by weight edits, and the loss that this costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lab_models import CLASSIC, LETTERS, MODERN, Subject
from torch import Tensor

from quill.errors import ConfigError, CorpusError, TokenizerError
from quill.lab.ablation.ablating import METHODS, Method, ablating, editing_weights
from quill.lab.ablation.cost import ablate, ablate_each, ablate_together
from quill.lab.ablation.targets import (
    AttentionLayer,
    FeedForwardLayer,
    Head,
    NGrams,
    Position,
    Target,
    WholeBlock,
    every_head,
    parse_target,
    targets_of,
)
from quill.lab.subject import attention_of, inference
from quill.lab.trace import trace
from quill.lab.windows import losses_per_window
from quill.model.cache import KVCache

TEXT = "".join(np.random.default_rng(0).choice(list(LETTERS), 400))


def tokens(rows: int = 4, length: int = 12, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 11, (rows, length)))


def logits_of(subject: Subject, tokens_BT: Tensor) -> Tensor:
    with inference(subject.model):
        return subject.model(tokens_BT)


def all_kinds(subject: Subject) -> list[Target]:
    kinds: list[Target] = [Head(1, 0), AttentionLayer(0), FeedForwardLayer(2), WholeBlock(1), Position(3)]
    return [*kinds, NGrams()] if getattr(subject.model.config, "ngram", 1) > 1 else kinds


def weights_equal(subject: Subject, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in subject.model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_ablating_nothing_changes_nothing(subject: Subject, method: Method) -> None:
    before = logits_of(subject, tokens())
    with ablating(subject.model, [], method, reference_NS=tokens(seed=2)):
        assert torch.equal(logits_of(subject, tokens()), before)
    with editing_weights(subject.model, []):
        assert torch.equal(logits_of(subject, tokens()), before)
    result = ablate(subject, "", TEXT, method=method)
    assert np.array_equal(result.intact_N, result.ablated_N) and result.cost.low == result.cost.high == 0


@pytest.mark.parametrize("method", METHODS)
def test_after_ablation_the_model_is_as_before_also_after_an_exception(subject: Subject, method: Method) -> None:
    before, attention = logits_of(subject, tokens()), copy.copy(vars(attention_of(subject.model, 1)))
    state, random_state = copy.deepcopy(subject.model.state_dict()), torch.get_rng_state()
    for target in all_kinds(subject):
        with pytest.raises(KeyError), ablating(subject.model, target, method, reference_NS=tokens(seed=2)):
            assert not torch.equal(logits_of(subject, tokens()), before), target
            raise KeyError
        if not isinstance(target, Position):
            with pytest.raises(KeyError), editing_weights(subject.model, target):
                raise KeyError
    assert torch.equal(logits_of(subject, tokens()), before)
    assert vars(attention_of(subject.model, 1)) == attention and weights_equal(subject, state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_weight_edit_equals_the_hook(subject: Subject) -> None:
    kinds = [*every_head(subject.model.config), *all_kinds(subject)]
    for target in kinds:
        if isinstance(target, Position):
            continue
        with ablating(subject.model, target):
            hooked = logits_of(subject, tokens())
        with editing_weights(subject.model, target):
            edited = logits_of(subject, tokens())
        torch.testing.assert_close(edited, hooked, atol=1e-5, rtol=1e-5)
    with ablating(subject.model, kinds[:3]), editing_weights(subject.model, kinds[:3]):
        together = logits_of(subject, tokens())
    with ablating(subject.model, kinds[:3]):
        assert torch.equal(logits_of(subject, tokens()), together)


def test_a_part_that_is_zeroed_adds_nothing_to_the_residual_stream(subject: Subject) -> None:
    text = tokens()[0]
    with ablating(subject.model, "attention:0,feed_forward:1,head:2.1"):
        found = trace(subject, text)
    assert not (found["blocks.0.middle_TD"] - found["blocks.0.input_TD"]).any()
    np.testing.assert_array_equal(found["blocks.1.output_TD"], found["blocks.1.middle_TD"])
    with ablating(subject.model, WholeBlock(1)):
        found = trace(subject, text)
    np.testing.assert_array_equal(found["blocks.1.output_TD"], found["blocks.1.input_TD"])


def test_heads_removed_one_by_one_are_the_attention_without_its_bias(subject: Subject) -> None:
    with ablating(subject.model, ["head:1.0", "head:1.1"]):
        found = trace(subject, tokens()[0])
    bias = getattr(attention_of(subject.model, 1).output, "bias", None)
    expected = np.zeros(8, np.float32) if bias is None else bias.detach().numpy()
    np.testing.assert_allclose(found["blocks.1.attention.output_TD"], np.tile(expected, (12, 1)), atol=1e-7)


def test_mean_ablation_puts_the_mean_over_the_reference_in_place(subject: Subject) -> None:
    reference_NS = tokens(rows=20, seed=5)
    usual = trace(subject, reference_NS, ["*.heads_*", "*.output_*"])
    with ablating(subject.model, "head:0.1,feed_forward:0", "mean", reference_NS=reference_NS):
        found = trace(subject, tokens()[0])
    mean_D = usual["blocks.0.feed_forward.output_BTD"].mean((0, 1))
    np.testing.assert_allclose(found["blocks.0.middle_TD"] + mean_D, found["blocks.0.output_TD"], atol=1e-4)
    output: Any = attention_of(subject.model, 0).output
    mean_E = usual["blocks.0.attention.heads_BHTE"][:, 1].mean((0, 1))
    heads_HTE = trace(subject, tokens()[0])["blocks.0.attention.heads_HTE"].copy()
    heads_HTE[1] = mean_E
    mixed_TD = torch.from_numpy(heads_HTE.transpose(1, 0, 2).reshape(12, 8))
    with torch.no_grad():
        expected = output(mixed_TD).numpy()
    np.testing.assert_allclose(found["blocks.0.attention.output_TD"], expected, atol=1e-4)


def test_resampling_takes_the_activation_of_one_other_window(subject: Subject) -> None:
    one, other = tokens(rows=1), tokens(rows=1, seed=9)
    everything = [WholeBlock(layer) for layer in range(3)]
    with ablating(subject.model, everything, "resample", reference_NS=torch.cat([one, other])):
        found = trace(subject, one[0])
    usual = trace(subject, other[0])
    for layer in range(3):
        for part in ("attention", "feed_forward"):
            added = found[f"blocks.{layer}.{'middle' if part == 'attention' else 'output'}_TD"]
            added = added - found[f"blocks.{layer}.{'input' if part == 'attention' else 'middle'}_TD"]
            np.testing.assert_allclose(added, usual[f"blocks.{layer}.{part}.output_TD"], atol=1e-4)
    with ablating(subject.model, everything, "resample", reference_NS=one), pytest.raises(ConfigError, match="equals"):
        logits_of(subject, one)
    with (
        ablating(subject.model, everything, "resample", reference_NS=other[:, :4]),
        pytest.raises(ConfigError, match="12 tokens cannot be resampled from reference windows of 4"),
    ):
        logits_of(subject, one)


@pytest.mark.parametrize("method", METHODS)
def test_ablation_token_by_token_equals_that_of_the_whole_text(subject: Subject, method: Method) -> None:
    text, other = tokens(rows=1), tokens(rows=1, seed=9)
    for target in all_kinds(subject):
        with ablating(subject.model, target, method, reference_NS=other):
            whole = logits_of(subject, text)
            cache = KVCache(subject.model.config)
            with inference(subject.model):
                rows = [subject.model(text[:, t : t + 1], cache) for t in range(12)]
        torch.testing.assert_close(torch.cat(rows, 1), whole, atol=1e-4, rtol=1e-4)


def test_without_position_17_the_token_there_does_not_matter(make_subject: Callable[..., Subject]) -> None:
    subject, first = make_subject(CLASSIC), tokens(rows=1)
    second = first.clone()
    second[0, 3] = (first[0, 3] + 1) % 11
    assert not torch.equal(logits_of(subject, first), logits_of(subject, second))
    with ablating(subject.model, Position(3)):
        assert torch.equal(logits_of(subject, first), logits_of(subject, second))


def test_without_n_gram_tables_a_modern_model_is_one_that_never_had_them(make_subject: Callable[..., Subject]) -> None:
    subject, plain = make_subject(MODERN), make_subject(replace(MODERN, ngram=1))
    plain.model.load_state_dict(subject.model.state_dict(), strict=False)
    with ablating(subject.model, "ngrams"):
        assert torch.equal(logits_of(subject, tokens()), logits_of(plain, tokens()))


@pytest.mark.parametrize("method", METHODS)
def test_the_cost_is_the_difference_of_the_losses_with_an_interval(subject: Subject, method: Method) -> None:
    result = ablate(subject, "block:0", TEXT, method=method, windows=20, seed=3)
    assert result.cost.mean == pytest.approx(float((result.ablated_N - result.intact_N).mean()))
    assert result.cost.low <= result.cost.mean <= result.cost.high
    again = ablate(subject, "block:0", TEXT, method=method, windows=20, seed=3)
    assert np.array_equal(result.ablated_N, again.ablated_N) and result.cost == again.cost
    assert len(result.intact_N) == 20


def test_each_part_costs_what_it_costs_alone(subject: Subject) -> None:
    each = ablate_each(subject, TEXT, seed=3)
    assert len(each.targets) == 3 * 2 + 3
    for target in (Head(2, 1), FeedForwardLayer(1)):
        alone = ablate(subject, target, TEXT, seed=3)
        assert each.cost_of(target) == alone.cost


def test_the_joint_cost_of_one_part_is_its_own(subject: Subject) -> None:
    joint = ablate_together(subject, "head:1.1", TEXT)
    assert joint.joint == joint.sum_of_single and joint.difference.mean == 0
    several = ablate_together(subject, "head:1.1,head:1.0,block:0", TEXT)
    assert several.sum_of_single.mean == pytest.approx(sum(cost.mean for cost in several.single))
    expected = ablate(subject, "head:1.1,head:1.0,block:0", TEXT)
    assert several.joint.mean == pytest.approx(expected.cost.mean)


def test_the_loss_without_blocks_is_that_of_the_embeddings_alone(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    result = ablate(subject, ["block:0", "block:1", "block:2"], tokens(rows=6))
    model, text = subject.model, tokens(rows=6)
    with torch.no_grad():
        x_BTD = model.token_embedding(text[:, :-1]) + model.get_parameter("position_embedding.weight")[:11]
        expected = torch.nn.functional.cross_entropy(
            model.head(model.final_norm(x_BTD)).flatten(0, 1), text[:, 1:].flatten()
        )
    assert result.ablated_N.mean() == pytest.approx(expected.item(), rel=1e-5)
    assert np.array_equal(result.intact_N, losses_per_window(model, text))


def test_every_target_has_a_text_form_that_names_it() -> None:
    for target in (Head(0, 3), AttentionLayer(1), FeedForwardLayer(2), WholeBlock(0), Position(7), NGrams()):
        assert parse_target(str(target)) == target
        assert targets_of(MODERN, f"{target if target != Head(0, 3) else 'head:0.1'}, block:0")[-1] == WholeBlock(0)


@pytest.mark.parametrize(
    "text",
    ["", "head", "head:1", "head:1.2.3", "head:-1.0", "head:a.b", "block:", "block:1.2", "ngrams:1", "mlp:0", "head:²"],
)
def test_a_text_that_names_no_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="there is no target"):
        parse_target(text)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("head:0.2", "head=2 cannot be used: head must be from 0 to 1"),
        ("head:3.0", "layer=3 cannot be used"),
        ("block:99", "layer=99"),
        ("position:16", "position=16"),
        ("ngrams", "no n-gram tables"),
    ],
)
def test_a_part_that_the_model_lacks_is_refused(
    make_subject: Callable[..., Subject], target: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ablate(make_subject(CLASSIC), target, TEXT)


def test_what_cannot_be_ablated_is_refused_in_one_line(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(CLASSIC)
    with pytest.raises(ConfigError, match="method='median'"):
        ablate(subject, "block:0", TEXT, method="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs reference windows"), ablating(subject.model, "block:0", "mean"):
        pass
    with pytest.raises(ConfigError, match="position:3 has no weights"), editing_weights(subject.model, "position:3"):
        pass
    with pytest.raises(CorpusError, match="at least 16 are needed"):
        ablate(subject, "block:0", "abc")
    with pytest.raises(TokenizerError):
        ablate(subject, "block:0", TEXT + "z")
    with pytest.raises(ConfigError, match="windows of 18 tokens"):
        ablate(subject, "block:0", tokens(length=18))
    with pytest.raises(TokenizerError):
        ablate(subject, "block:0", tokens() + 5)


def test_results_have_numbers_and_pictures(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(MODERN)
    for result in (
        ablate(subject, "block:0", TEXT),
        ablate_each(subject, TEXT),
        ablate_together(subject, "head:0.0,head:0.1", TEXT),
    ):
        assert result.png().startswith(b"\x89PNG") and result.to_json() and result.explanation in result.to_html()
