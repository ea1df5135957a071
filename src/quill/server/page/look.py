"""Look inside a model for a text: attention of every head, lenses, attribution, and what each head does.

Texts longer than the context are cut: their last tokens are looked at.

Shapes: L layers, H heads, T tokens, N = T (T + 1) / 2 pairs of a token and one that it may attend to.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from starlette.routing import Route

from quill.errors import CheckpointError, CorpusError
from quill.files import cache_folder
from quill.generation.options import encode_prompt
from quill.lab.attention import AttentionMaps, attention_maps, packed_triangle
from quill.lab.attribution import attribute
from quill.lab.logit_lens import Lens, lens
from quill.lab.subject import Subject, check_head, check_position
from quill.lab.tuned_lens import NAME, TunedLens, load_tuned_lens
from quill.model.config import architecture_of
from quill.server.page.laboratory import dataset_of
from quill.server.page.questions import Question, ask

if TYPE_CHECKING:
    from quill.server.page.laboratory import Laboratories, Laboratory
    from quill.server.served_models import ServedModel

MOST_TOKENS = 512
"""Tokens that are looked at: attention is quadratic in their number."""
EXAMPLE = 64
"""Tokens of the text that is suggested to look at."""


class TextQuestion(Question, frozen=True, kw_only=True):
    """The text that is looked at."""

    text: str


class AttentionQuestion(TextQuestion, frozen=True, kw_only=True):
    """Which maps: the weights, or the weights times the size of what is read."""

    kind: Literal["weights", "value-weighted"] = "weights"


class RowQuestion(AttentionQuestion, frozen=True, kw_only=True):
    """A token whose attention is asked for exactly; a negative position counts from the end."""

    layer: int
    head: int
    position: int = -1


class LensQuestion(TextQuestion, frozen=True, kw_only=True):
    """Which lens."""

    tuned: bool = False


class AttributionQuestion(TextQuestion, frozen=True, kw_only=True):
    """Which prediction is explained, and what it is compared with: the mean of all tokens if nothing is named."""

    position: int = -1
    token: str | int | None = None
    versus: str | int | None = None


def routes(laboratories: Laboratories) -> list[Route]:
    """Return the routes of this file."""
    return [
        ask(laboratories, "/look/model", Question, about_model),
        ask(laboratories, "/look/attention", AttentionQuestion, attention),
        ask(laboratories, "/look/row", RowQuestion, row),
        ask(laboratories, "/look/lens", LensQuestion, lens_of_text),
        ask(laboratories, "/look/attribution", AttributionQuestion, attribution),
        ask(laboratories, "/look/heads", Question, heads),
    ]


def about_model(laboratory: Laboratory, model: ServedModel, question: Question) -> dict[str, Any]:
    """Return what the model is, and which parts can be switched off."""
    subject = model.language_model
    config = subject.config
    layers = range(config.n_layer)
    return {
        "id": model.id,
        "architecture": architecture_of(config),
        "config": asdict(config),
        "parameters": subject.model.count_parameters(),
        "context": min(config.block_size, MOST_TOKENS),
        "example": example_of(model),
        "parts": {
            "heads": [[f"head:{layer}.{head}" for head in range(config.n_head)] for layer in layers],
            "attention": [f"attention:{layer}" for layer in layers],
            "feed_forward": [f"feed_forward:{layer}" for layer in layers],
            "blocks": [f"block:{layer}" for layer in layers],
            "ngrams": ["ngrams"] if getattr(config, "ngram_sizes", []) else [],
        },
    }


def example_of(model: ServedModel) -> str:
    """Return the beginning of the run's validation split; a line break if the text is not there any more."""
    try:
        tokens = dataset_of(model).val[: min(EXAMPLE, model.checkpoint.config.block_size)]
        return model.checkpoint.tokenizer.decode(tokens)
    except (CheckpointError, CorpusError):
        return "\n"


def attention(laboratory: Laboratory, model: ServedModel, question: AttentionQuestion) -> dict[str, Any]:
    """Return the attention of every head: base64 of packed_LHN, bytes that are 255 · √weight."""
    subject = model.language_model
    found, left_out = maps_of(laboratory, model, question)
    packed = packed_triangle(np.stack(list(found.maps.values())))
    config = subject.model.config
    return {
        "title": found.title, "explanation": found.explanation, "tokens": found.labels, "left_out": left_out,
        "layers": config.n_layer, "heads": config.n_head, "packed": base64.b64encode(packed.tobytes()).decode("ascii"),
    }  # fmt: skip


def maps_of(laboratory: Laboratory, model: ServedModel, question: AttentionQuestion) -> tuple[AttentionMaps, int]:
    """Return the maps of all heads, and how many tokens were left out; those of the last question are kept."""
    about = (model.id, model.hash, question.text, question.kind)
    if laboratory.maps is None or laboratory.maps[0] != about:
        tokens, left_out = last_tokens(model.language_model, question.text)
        found = attention_maps(model.language_model, tokens, kind=question.kind)
        laboratory.maps = about, (found, left_out)
    return laboratory.maps[1]


def row(laboratory: Laboratory, model: ServedModel, question: RowQuestion) -> dict[str, Any]:
    """Return exactly how much a token attends to each token up to itself, and each later token to it."""
    found, _ = maps_of(laboratory, model, question)
    at = check_position(question.position, len(found.labels))
    layer, head = check_head(model.language_model.config, question.layer, question.head)
    map_TS = found.maps[f"{layer}.{head}"]
    return {"position": at, "attends_to": map_TS[at, : at + 1], "attended_by": map_TS[at:, at]}


def lens_of_text(laboratory: Laboratory, model: ServedModel, question: LensQuestion) -> dict[str, Any]:
    """Return what each layer would predict; for a tuned lens that is not trained yet, {"trained": False}."""
    subject = model.language_model
    tokens, left_out = last_tokens(subject, question.text)
    tuned = stored_tuned_lens(model) if question.tuned else None
    if question.tuned and tuned is None:
        return {"trained": False}
    found: Lens = lens(subject, tokens, tuned=tuned)
    return {
        "trained": True, "title": found.title, "explanation": found.explanation, "left_out": left_out,
        "readings": found.readings, **found.numbers(),
    }  # fmt: skip


def stored_tuned_lens(model: ServedModel) -> TunedLens | None:
    """Return the tuned lens in the folder of the run, if it is of these weights."""
    try:
        return load_tuned_lens(model.folder / NAME, model.language_model.model)
    except CheckpointError:
        return None


def attribution(laboratory: Laboratory, model: ServedModel, question: AttributionQuestion) -> dict[str, Any]:
    """Return what each part adds to the logit of a token."""
    subject = model.language_model
    tokens, _ = last_tokens(subject, question.text)
    found = attribute(
        subject, tokens, position=question.position, token=question.token, versus=question.versus
    )  # fmt: skip
    return {"title": found.title, "explanation": found.explanation, **found.numbers()}


def heads(laboratory: Laboratory, model: ServedModel, question: Question) -> dict[str, Any]:
    """Return role and cost of each head, or {"measured": False} before the job "heads" has measured them."""
    try:
        return {"measured": True, **json.loads(heads_file(model.hash).read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return {"measured": False}


def heads_file(weights_hash: str) -> Path:
    """Return the file for the roles and costs of the heads of these weights."""
    return cache_folder() / "heads" / f"{weights_hash}.json"


def last_tokens(subject: Subject, text: str) -> tuple[Sequence[int], int]:
    """Return the last tokens of a text, as many as are looked at, and the number of those before them."""
    tokens = encode_prompt(subject.tokenizer, text, "error")
    kept = tokens[-min(subject.model.config.block_size, MOST_TOKENS) :]
    return kept, len(tokens) - len(kept)
