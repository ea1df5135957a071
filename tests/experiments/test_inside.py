"""Experiments that look inside: controls behave as they must, verdicts follow from what was measured, seeds repeat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from quill.evaluation.loss import cross_entropy
from quill.experiments.experiment import Experiment, Result
from quill.experiments.inside import communication, heads, induction, refinement
from quill.experiments.inside.context_losses import losses_by_context, table_losses
from quill.experiments.inside.gradients import swapping_blocks, update_cosines
from quill.experiments.inside.induction_models import configurations, head_scores, repeated_strings
from quill.experiments.inside.pruning import gradient_importance, pruning_curve
from quill.experiments.inside.studied import Studied, shuffled, without_ngrams
from quill.lab.ablation.targets import every_head
from quill.lab.windows import losses_per_window, token_losses
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModernConfig
from quill.tokenizers.char import CharTokenizer
from quill.training.config import TrainConfig

CLASSIC = GPTConfig(vocab_size=11, block_size=12, n_layer=2, n_head=2, n_embd=8, dropout=0.0)
MODERN = ModernConfig(vocab_size=11, block_size=12, n_layer=2, n_head=2, n_embd=8, dropout=0.0, ngram=2, ngram_rows=97)
CONFIGS = pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])


def random_model(config: GPTConfig | ModernConfig, std: float = 0.4) -> Model:
    """Return a model whose weights are all large enough to matter."""
    generator = torch.Generator().manual_seed(1)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model


def studied_of(model: Model, windows: int = 9) -> Studied:
    """Return a model with random texts."""
    tokens = np.random.default_rng(0).integers(0, 11, 400)
    windows_NT = torch.from_numpy(tokens[: windows * 13].reshape(windows, 13))
    return Studied(model, CharTokenizer.from_text("abcdefghij\n"), tokens, tokens, windows_NT, TrainConfig())


@pytest.fixture
def run_tiny(tiny: dict[str, Any]) -> Callable[..., Result]:
    """Return a function that runs an experiment at its smallest."""

    def run(experiment: Experiment, **more: Any) -> Result:
        names = {field for field in vars(experiment.settings)}
        chosen = {name: value for name, value in tiny.items() if name in names} | {"n_layer": 2} | more
        return experiment.run(replace(experiment.settings, **chosen))

    return run


SIZES: dict[str, dict[str, Any]] = {
    "communication": {"texts": 2, "text_length": 8, "draws": 1, "targets": 20, "one_token_steps": 2},
    "heads": {"role_windows": 2, "orders": 2},
    "refinement": {"lens_steps": 2, "lens_windows": 4},
}


@pytest.mark.parametrize("module", [communication, heads, refinement], ids=list(SIZES))
def test_the_same_seed_gives_the_same_numbers_and_every_result_has_a_picture(
    module: Any, run_tiny: Callable[..., Result]
) -> None:
    sizes = SIZES[module.EXPERIMENT.name]
    first, second = run_tiny(module.EXPERIMENT, **sizes), run_tiny(module.EXPERIMENT, **sizes)
    assert first.reproducible() == second.reproducible()
    assert first.verdict in ("supported", "not here", "unclear")
    assert first.figure().get_axes()


def test_without_attention_influence_is_exactly_diagonal_and_with_it_not() -> None:
    maps = communication.maps_of(studied_of(random_model(CLASSIC)), np.arange(10), draws=2, seed=0)
    assert (np.tril(maps["without attention"], -1) == 0).all() and np.diagonal(maps["without attention"]).min() > 0
    assert np.tril(maps["influence"], -1).max() > 0


def test_ngram_tables_are_silenced_and_restored() -> None:
    """N-gram tables communicate too: with them influence would not be diagonal without attention."""
    model = random_model(MODERN)
    tokens = np.arange(10)
    talking = communication.maps_of(studied_of(model), tokens, draws=1, seed=0)["without attention"]
    before = losses_per_window(model, studied_of(model).windows_NT)
    with without_ngrams(model) as silenced:
        silent = communication.maps_of(studied_of(model), tokens, draws=1, seed=0)["without attention"]
    assert silenced and np.tril(talking, -1).max() > 0 and (np.tril(silent, -1) == 0).all()
    assert (losses_per_window(model, studied_of(model).windows_NT) == before).all()
    with without_ngrams(random_model(CLASSIC)) as silenced:
        assert not silenced


def test_context_lengths_are_measured_on_the_same_targets() -> None:
    model, val = random_model(CLASSIC), np.random.default_rng(0).integers(0, 11, 60)
    losses_WN = losses_by_context(model, val, np.array([20, 30]), [1, 12])
    whole = token_losses(model, torch.from_numpy(np.stack([val[8:21], val[18:31]])))
    np.testing.assert_allclose(losses_WN[1], whole[:, -1], atol=1e-6)
    alone = token_losses(model, torch.from_numpy(np.stack([val[19:21], val[29:31]])))
    np.testing.assert_allclose(losses_WN[0], alone[:, -1], atol=1e-6)


def test_tables_of_counts_give_the_losses_computed_by_hand() -> None:
    studied = replace(studied_of(random_model(CLASSIC)), train=np.array([0, 1, 0, 1, 0]), val=np.array([0, 1]))
    unigram_N, bigram_N = table_losses(studied, np.array([1]))
    assert unigram_N[0] == pytest.approx(-math.log(3 / 16))  # 1 occurs twice in 5 tokens; each of 11 counts 1 more
    assert bigram_N[0] == pytest.approx(-math.log(3 / 13))  # 0 1 occurs twice among the pairs 01 10 01 10


def test_the_verdict_of_communication_follows_from_the_losses() -> None:
    below = np.tril(np.ones((6, 6)))
    maps = [{name: below for name in ("influence", "attention", "rollout", "attention × value")}] * 2
    maps = [each | {"without attention": np.eye(6)} for each in maps]
    for number, each in enumerate(maps):
        for name in communication.MEASURES:
            each[name] = below * np.random.default_rng(number).random((6, 6))
    high, low = np.full(9, 3.0), np.full(9, 2.0)
    labels, settings = list("abcdef"), communication.CommunicationSettings()
    for better, verdict in ((low, "supported"), (high, "not here")):
        losses = {"lengths": [1, 8], "model_WN": np.stack([high, better]), "one_N": high, "tables": (high, high)}
        assert communication.result_of(settings, maps, losses, labels, False).verdict == verdict
    losses = {"lengths": [1, 8], "model_WN": np.stack([high, low]), "one_N": high, "tables": (high, high)}
    maps[0]["without attention"] = below  # an earlier token has an effect without attention
    assert communication.result_of(settings, maps, losses, labels, False).effects[0].verdict != "supported"


@CONFIGS
def test_the_importance_of_a_head_is_the_derivative_of_the_loss_by_its_scale(config: GPTConfig | ModernConfig) -> None:
    model = random_model(config)
    windows_NT = studied_of(model, 1).windows_NT
    importance_LH = gradient_importance(model, windows_NT)
    weight: Any = model.blocks[1].attention.output.weight  # type: ignore[union-attr]
    losses = []
    for scale in (0.999, 1.001):
        with torch.no_grad():
            before = weight.clone()
            weight[:, 4:] *= scale  # the columns of head 1
        losses.append(losses_per_window(model, windows_NT)[0])
        with torch.no_grad():
            weight.copy_(before)
    assert importance_LH[1, 1] == pytest.approx(abs(losses[1] - losses[0]) / 0.002, rel=0.02)


def test_pruning_begins_with_the_whole_model_and_ends_without_heads() -> None:
    model = random_model(CLASSIC)
    windows_NT, order = studied_of(model).windows_NT, every_head(CLASSIC)
    losses_KN = pruning_curve(model, order, [0, 2, 4], windows_NT)
    assert (losses_KN[0] == losses_per_window(model, windows_NT)).all()
    assert (losses_KN[2] == pruning_curve(model, order[::-1], [4], windows_NT)[0]).all()
    assert (losses_KN[1] != losses_KN[0]).all()


def test_shuffled_weights_are_the_same_numbers_in_another_order() -> None:
    model = random_model(CLASSIC)
    other, again = shuffled(model, 0), shuffled(model, 0)
    for (name, a), (_, b), (_, c) in zip(
        model.named_parameters(), other.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values) and torch.equal(b, c), name
    assert not torch.equal(model.token_embedding.weight, other.token_embedding.weight)


def test_random_weights_have_no_roles(run_tiny: Callable[..., Result]) -> None:
    result = run_tiny(heads.EXPERIMENT, **SIZES["heads"])
    assert {role for row in result.figures["control_roles"] for role in row} == {"none"}
    assert result.effects[0].verdict == "not here"  # and after 4 steps the trained ones have none either


def test_exchanged_blocks_are_restored_and_equal_ones_change_nothing() -> None:
    model = random_model(CLASSIC)
    windows_NT, blocks = studied_of(model).windows_NT, list(model.blocks)
    before = losses_per_window(model, windows_NT)
    with swapping_blocks(model, 0):
        assert (losses_per_window(model, windows_NT) != before).any()
    assert list(model.blocks) == blocks
    model.blocks[1].load_state_dict(model.blocks[0].state_dict())
    before = losses_per_window(model, windows_NT)
    with swapping_blocks(model, 0):
        assert (losses_per_window(model, windows_NT) == before).all()


def test_the_cosine_of_an_update_is_that_of_the_formula() -> None:
    model: Any = random_model(CLASSIC)
    tokens_NT = studied_of(model, 2).windows_NT
    cosines_LN = update_cosines(model, tokens_NT)
    assert cosines_LN.shape == (2, 2) and (np.abs(cosines_LN) <= 1).all()
    tokens_T = tokens_NT[0]
    x_BTD = model.token_embedding(tokens_T[None, :-1]) + model.position_embedding.weight[None, :12]
    x_BTD = model.blocks[0](x_BTD).detach().requires_grad_()
    output_BTD = model.blocks[1](x_BTD)
    loss = cross_entropy(model.head(model.final_norm(output_BTD)), tokens_T[None, 1:])
    (gradient_BTD,) = torch.autograd.grad(loss, x_BTD)
    expected = torch.cosine_similarity(output_BTD - x_BTD, -gradient_BTD, dim=-1).mean().item()
    assert cosines_LN[1, 0] == pytest.approx(expected, abs=1e-5)


def test_the_modern_model_has_cosines_too() -> None:
    model = random_model(MODERN)
    assert np.isfinite(update_cosines(model, studied_of(model, 2).windows_NT)).all()


def test_every_target_of_the_second_part_of_a_string_was_seen_after_the_same_token() -> None:
    strings = repeated_strings(8, 20, 16, torch.Generator().manual_seed(0))
    for tokens_T, second_T, period in zip(
        strings.tokens_BT.tolist(), strings.second_BT.tolist(), strings.period_B.tolist(), strict=True
    ):
        assert len(set(tokens_T[:period])) == period
        pairs = list(itertools.pairwise(tokens_T))
        for place, (pair, second) in enumerate(zip(pairs, second_T, strict=True)):
            assert (pair in pairs[:place]) == second
    assert len(set(strings.period_B.tolist())) > 1


def test_only_one_of_the_compared_models_has_pairs_and_only_one_has_two_layers() -> None:
    shapes = configurations(8, 20, 8)
    assert [(c.n_layer, len(getattr(c, "ngram_sizes", []))) for c in shapes.values()] == [(1, 0), (2, 0), (1, 1)]


TINY_INDUCTION = induction.InductionSettings(
    vocab_size=6, length=12, n_embd=8, steps=3, batch_size=4, seeds=2, strings=8, points=2
)


def test_untrained_models_do_not_copy_and_the_verdict_says_so() -> None:
    first, second = induction.EXPERIMENT.run(TINY_INDUCTION), induction.EXPERIMENT.run(TINY_INDUCTION)
    assert first.verdict == "not here" and first.figure().get_axes()
    assert first.reproducible() == second.reproducible()
    assert first.figures["final_losses"]["two layers"] == pytest.approx(math.log(6), abs=0.3)


def test_heads_with_random_weights_are_no_induction_heads() -> None:
    strings = repeated_strings(8, 20, 16, torch.Generator().manual_seed(0))
    found, _ = head_scores(build_model(configurations(8, 20, 8)["two layers"]), strings)
    assert found.shape == (2, 2) and found.max() < induction.SCORE
