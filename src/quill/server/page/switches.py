"""The loss that parts of a model cost when they are switched off. switched_models.py makes the model without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta
from starlette.routing import Route

from quill.errors import CheckpointError, CorpusError
from quill.lab.ablation.cost import losses_without
from quill.lab.ablation.targets import targets_of
from quill.lab.statistics import paired_difference
from quill.server.page.questions import Question, ask

if TYPE_CHECKING:
    from quill.server.page.laboratory import Laboratories, Laboratory
    from quill.server.served_models import ServedModel

MOST_PARTS, LONGEST = 4096, 40


class SwitchQuestion(Question, frozen=True, kw_only=True):
    """The parts that are switched off, such as "head:0.3"."""

    off: Annotated[tuple[Annotated[str, Meta(max_length=LONGEST)], ...], Meta(max_length=MOST_PARTS)]


def routes(laboratories: Laboratories) -> list[Route]:
    """Return the routes of this file."""
    return [ask(laboratories, "/switches/cost", SwitchQuestion, cost)]


def cost(laboratory: Laboratory, model: ServedModel, question: SwitchQuestion) -> dict[str, Any]:
    """Return the loss without these parts beside that of the whole model, on windows of the validation split.

    Without the run's text it is {"measured": False} with the reason.
    """
    subject = model.language_model.model
    targets = targets_of(subject.config, question.off)
    try:
        tokens_NT, intact_N = laboratory.windows(model)
    except (CheckpointError, CorpusError) as error:
        return {"measured": False, "reason": str(error)}
    ablated_N = losses_without(subject, targets, tokens_NT)
    return {
        "measured": True, "off": [str(target) for target in targets], "windows": len(tokens_NT),
        "tokens": tokens_NT[:, 1:].numel(), "loss_intact": intact_N.mean(), "loss_ablated": ablated_N.mean(),
        "cost": paired_difference(ablated_N, intact_N),
    }  # fmt: skip
