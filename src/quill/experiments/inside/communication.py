"""Attention is communication between tokens: what is seen, what has an effect, and what it is worth.

Attention weights show where tokens look. Influence shows what changes a prediction, and the loss over the context what
earlier tokens are worth. Their order is compared by rank correlation (Jain & Wallace 2019, "Attention is not
Explanation", asked for exactly this comparison).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.data.dataset import prepare_dataset
from quill.experiments.experiment import Experiment, OnProgress, Result
from quill.experiments.inside.context_losses import (
    losses_by_context,
    table_losses,
    targets_of,
    train_with_one_token,
)
from quill.experiments.inside.studied import Studied, StudySettings, studied_model, without_ngrams
from quill.experiments.verdict import effect
from quill.lab.ablation.ablating import ablating
from quill.lab.ablation.targets import AttentionLayer
from quill.lab.attention import rollout, value_weighted, weights_LHTS
from quill.lab.statistics import bootstrap_interval
from quill.lab.token_influence import influence
from quill.lab.trace import trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Tokens communicate by attention: without it a prediction depends on its own token alone, and the more earlier "
    "tokens a model may see, the better it predicts."
)
MARGIN = 0.1
"""Nats that seeing earlier tokens must be worth, and the least share of influence that must come from them."""
MEASURES = ("attention", "rollout", "attention × value")


@dataclass(frozen=True)
class CommunicationSettings(StudySettings):
    """Sizes of the communication experiment."""

    texts: int = 8
    """validation texts whose influence is measured"""
    text_length: int = 48
    draws: int = 4
    """replacements of each token"""
    targets: int = 4000
    """validation tokens that are predicted from contexts of each length"""
    one_token_steps: int = 300
    """training steps of the model that sees one token"""


def run(settings: CommunicationSettings, on_progress: OnProgress) -> Result:
    """Measure influence, attention, and the loss over the context."""
    studied = studied_model(settings, lambda what, share: on_progress(what, 0.6 * share))
    config = studied.model.config
    with without_ngrams(studied.model) as silenced:
        T = min(settings.text_length, config.block_size)
        texts = [window_T[:T].numpy() for window_T in studied.windows_NT[: settings.texts]]
        maps = []
        for number, tokens_T in enumerate(texts):
            on_progress("replacing tokens", 0.6 + 0.2 * number / len(texts))
            maps.append(maps_of(studied, tokens_T, settings.draws, settings.seed))
        on_progress("predicting from less context", 0.8)
        lengths = [w for w in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if w < config.block_size]
        lengths.append(config.block_size)
        positions_N = targets_of(studied, settings.targets, config.block_size)
        losses_WN = losses_by_context(studied.model, studied.val, positions_N, lengths)
    on_progress("training with one token of context", 0.85)
    dataset = prepare_dataset(settings.dataset, tokenizer=studied.tokenizer, data_dir=settings.data_dir)
    one = train_with_one_token(studied, dataset, settings.one_token_steps, settings.seed)
    one_N = losses_by_context(one, studied.val, positions_N, [1])[0]
    labels = [studied.tokenizer.decode([int(token)]) for token in texts[0]]
    losses = {"lengths": lengths, "model_WN": losses_WN, "one_N": one_N, "tables": table_losses(studied, positions_N)}
    return result_of(settings, maps, losses, labels, silenced)


def maps_of(studied: Studied, tokens_T: np.ndarray, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Return map_TS of one text: influence with and without attention, and what attention shows."""
    model, L = studied.model, studied.model.config.n_layer
    found = trace(studied, tokens_T, ["*.attention.weights_*", "*.attention.v_*"])
    weights = weights_LHTS(found, L)
    with ablating(model, [AttentionLayer(layer) for layer in range(L)]):
        alone_TS = influence(studied, tokens_T, draws=draws, seed=seed).influence_TS
    return {
        "influence": influence(studied, tokens_T, draws=draws, seed=seed).influence_TS,
        "without attention": alone_TS,
        "attention": weights.mean((0, 1)),
        "rollout": rollout(weights)[-1],
        "attention × value": np.mean([value_weighted(studied, found, layer).mean(0) for layer in range(L)], axis=0),
    }


def rank_correlation(a_TS: np.ndarray, b_TS: np.ndarray, fewest: int = 4) -> float:
    """Return Spearman's correlation of two maps over earlier tokens, the mean over rows with at least `fewest`."""
    found = []
    for t in range(fewest, len(a_TS)):
        a_t, b_t = (np.argsort(np.argsort(each[t, :t])) for each in (a_TS, b_TS))
        found.append(np.corrcoef(a_t, b_t)[0, 1])
    return float(np.mean(found))


def result_of(
    settings: CommunicationSettings,
    maps: list[dict[str, np.ndarray]],
    losses: dict[str, Any],
    labels: list[str],
    silenced: bool,
) -> Result:
    """Return the result of these measurements."""
    model_WN, one_N, (unigram_N, bigram_N) = losses["model_WN"], losses["one_N"], losses["tables"]
    outside_N = np.array([np.abs(np.tril(each["without attention"], -1)).max() for each in maps])
    shares_N = np.array([np.tril(m["influence"], -1).sum() / m["influence"].sum() for m in maps])
    ranks = {name: np.array([rank_correlation(m["influence"], m[name]) for m in maps]) for name in MEASURES}
    first_N = np.array([m["attention"][4:, 0].mean() for m in maps])
    uniform = float(np.mean([1 / (t + 1) for t in range(4, len(labels))]))
    longest = losses["lengths"][-1]
    tables = " N-gram tables, which communicate too, are silenced." if silenced else ""
    correlations = ", ".join(f"{name} {values.mean():.2f}" for name, values in ranks.items())
    return Result(
        name="communication",
        title="Attention is communication: influence, what attention shows, and what context is worth",
        claim=CLAIM,
        measure=(
            f"Influence is the divergence of a prediction when one token is replaced, over {len(maps)} texts; the loss"
            f" is that of {len(one_N):,} validation tokens, predicted from their last w tokens alone.{tables}"
            f" Rank correlation with influence, within a row: {correlations}."
        ),
        control=(
            f"Without attention the largest influence of an earlier token is {outside_N.max():g}. A model trained with"
            f" one token of context reaches {one_N.mean():.3f}, a table of pairs {bigram_N.mean():.3f}. The first token"
            f" gets {first_N.mean():.0%} of the attention, where uniform attention gives {uniform:.0%}"
            " (an attention sink, Xiao et al. 2023, if far more)."
        ),
        opposite="An earlier token would change a prediction without attention, or context would not lower the loss.",
        effects=(
            effect("without attention: minus the influence of earlier tokens", -outside_N, 0.0),
            effect("share of influence that comes from earlier tokens", shares_N, MARGIN, "share"),
            effect(f"loss with 1 token of context above that with {longest}", model_WN[0] - model_WN[-1], MARGIN),
            effect("a model trained with 1 token: loss above that of this model", one_N - model_WN[-1], MARGIN),
        ),
        controls=(
            effect("trained with 1 token: loss above that of a table of pairs", one_N - bigram_N, 0.0),
            *(effect(f"rank correlation of {name} with influence", ranks[name], 0.0, "Spearman") for name in MEASURES),
        ),
        figures={
            "labels": labels,
            "maps": {name: np.round(map_TS.astype(np.float64), 6) for name, map_TS in maps[0].items()},
            "rank_correlations": ranks,
            "share_from_others": shares_N,
            "attention_to_first": first_N,
            "lengths": losses["lengths"],
            "losses": [bootstrap_interval(losses_N) for losses_N in model_WN],
            "trained_with_one_token": float(one_N.mean()),
            "unigram": float(unigram_N.mean()),
            "bigram": float(bigram_N.mean()),
        },
        settings=settings,
        draw=draw,
    )


def draw(result: Result) -> Figure:
    """Return the picture of a result."""
    from quill.experiments.inside.communication_figure import draw_communication

    return draw_communication(result)


EXPERIMENT = Experiment(
    "communication",
    CLAIM,
    run,
    CommunicationSettings(),
    CommunicationSettings(
        n_layer=3, n_embd=64, steps=300, texts=4, text_length=32, draws=2, targets=1000, one_token_steps=100
    ),
)
