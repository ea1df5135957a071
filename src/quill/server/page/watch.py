"""Watch a run: its events while it trains, the losses to compare with, and its film.

Shapes: F frames, L layers, H heads, R readings, T tokens, N = T (T + 1) / 2 pairs of a token and one that it may attend
to.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.routing import Route

from quill.errors import CheckpointError, CorpusError
from quill.experiments.counting import counted_losses
from quill.lab.film.film import Film, load_film
from quill.lab.film.format import NAME
from quill.lab.finding import dump
from quill.lab.windows import windows_of
from quill.server.page.laboratory import dataset_of
from quill.server.page.questions import Question, ask
from quill.tracking.jsonl import read_events
from quill.tracking.run_status import RunStatus

if TYPE_CHECKING:
    from quill.server.page.laboratory import Laboratories, Laboratory
    from quill.server.served_models import ServedModel

MOST_COUNTED = 5_000_000
"""Tokens of the training split that are counted."""
MOST_PAIRS = 1 << 24
"""Pairs of tokens in the largest table of counts."""
WINDOWS = 64


class RunQuestion(Question, frozen=True, kw_only=True):
    """How many events are known already, and the mark of the last of them."""

    after: int = 0
    mark: int | None = None


def routes(laboratories: Laboratories) -> list[Route]:
    """Return the routes of this file."""
    return [
        ask(laboratories, "/watch/run", RunQuestion, run),
        ask(laboratories, "/watch/lines", Question, lines),
        ask(laboratories, "/watch/film", Question, film),
        ask(laboratories, "/watch/attention", Question, attention_of_film),
    ]


def run(laboratory: Laboratory, model: ServedModel, question: RunQuestion) -> dict[str, Any]:
    """Return the events of a run after those that are known, and how far it is.

    If the known events are no longer those of the file, because the run was resumed from an earlier step, all events
    are returned and `first` is 0.
    """
    events = read_events(model.folder / "metrics.jsonl")
    status = RunStatus()
    for event in events:
        status.update(event)
    known = question.after if 0 < question.after <= len(events) else 0
    first = known if known and mark_of(events[known - 1]) == question.mark else 0
    try:
        film = (model.folder / NAME).stat().st_mtime_ns
    except OSError:
        film = None
    return {
        "id": model.id,
        "training": model.training,
        "first": first,
        "events": events[first:],
        "mark": mark_of(events[-1]) if events else None,
        "step": status.steps,
        "max_iters": status.max_iters if events else None,
        "seconds_left": status.seconds_left() if model.training else None,
        "film": None if film is None else str(film),  # nanoseconds exceed the whole numbers of JavaScript
    }


def mark_of(event: dict[str, Any]) -> int:
    """Return a number that tells an event from another one."""
    return zlib.crc32(dump(event).encode("utf-8", "replace"))


def lines(laboratory: Laboratory, model: ServedModel, question: Question) -> dict[str, Any]:
    """Return the losses of knowing nothing (ln V), counting single tokens and counting pairs, in nats per token.

    Without the run's text, or where pairs are too many to count, the last two are null and `reason` says why.
    """
    config = model.language_model.config
    found: dict[str, Any] = {"uniform": math.log(config.vocab_size), "unigram": None, "bigram": None, "reason": None}
    if config.vocab_size**2 > MOST_PAIRS:
        return found | {"reason": f"a vocabulary of {config.vocab_size:,} tokens has too many pairs to count"}
    try:
        dataset = dataset_of(model)
        length = min(config.block_size + 1, len(dataset.val))
        single, pairs = counted_losses(dataset.train[:MOST_COUNTED], windows_of(dataset.val, length, WINDOWS))
    except (CheckpointError, CorpusError) as error:
        return found | {"reason": str(error)}
    return found | {"unigram": single, "bigram": pairs}


def film(laboratory: Laboratory, model: ServedModel, question: Question) -> dict[str, Any]:
    """Return the film of a run but for its attention; {"frames": []} and the reason if there is none."""
    try:
        found = load_film(model.folder)
    except CheckpointError as error:
        return {"frames": [], "reason": str(error)}
    layers, heads = found.shape
    return {
        "title": found.title, "explanation": found.explanation, "tokens": found.labels, "layers": layers,
        "heads": heads, "readings": ["embedding", *(f"block {layer}" for layer in range(layers))],
        "shown_head": found.shown, "frames": [frame_of(found, index) for index in range(len(found.steps))],
    }  # fmt: skip


def frame_of(film: Film, index: int) -> dict[str, Any]:
    """Return one moment of a film."""
    frame, (roles, strength_LH) = film.frames.frames[index], film.roles[index]
    text_of = {token: film.frames.tokenizer.decode([token]) for token in np.unique(frame.best_RT).tolist()}
    return {
        "step": frame.step,
        "evaluation": vars(frame.evaluation),
        "probe_loss": film.probe_losses[index],
        "sample": film.samples[index],
        "roles": roles,
        "strength": np.round(strength_LH, 4),
        "predicted": [[text_of[token] for token in row] for row in frame.best_RT.tolist()],
        "probability": np.round(frame.probability_RT.astype(np.float64), 4),
        "kl": np.round(frame.kl_RT.astype(np.float64), 4),
        "agreement": film.agreement_FR[index],
    }


def attention_of_film(laboratory: Laboratory, model: ServedModel, question: Question) -> bytes:
    """Return packed_FLHN of a film: bytes that are 255 · √weight, the lower triangles row by row."""
    return np.stack([frame.attention_LHN for frame in load_film(model.folder).frames.frames]).tobytes()
