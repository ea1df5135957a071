"""Direct logit attribution: which head or feed-forward network raised the score of a token, and by how much.

It counts what a part writes into the residual stream for the final norm and head to read. It does not count that a
later part may read the same and undo it; ablation does (ablation.py).

Shapes: P parts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.lab.finding import Finding
from quill.lab.residual import Unembedding, residual_parts
from quill.lab.subject import Subject, Text, check_position, check_token, labels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Attribution(Finding):
    """What each part adds to the logit of a token, relative to another token or to the mean of all tokens."""

    context: list[str]
    """the text up to the position, token by token"""
    token: str
    versus: str | None
    """the other token; None for the mean over the vocabulary"""
    names: list[str]
    """the parts, and last "constant": the biases of final norm and head"""
    values_P: np.ndarray
    """in logits, before the cap; their sum is `total`"""
    probability: float
    """of the token, by the model"""
    n_head: int = field(repr=False, default=1)

    explanation = (
        "Each bar is what one part of the model writes towards the token's logit at this position, before the cap, with"
        " the divisor of the final norm held fixed. The bars add up to the difference that the model computes."
    )

    @property
    def title(self) -> str:  # type: ignore[override]
        """What is shown, in a line."""
        from quill.lab.drawing.style import visible

        than = f"than “{visible(self.versus)}”" if self.versus is not None else "than the mean token"
        before = "".join(map(visible, self.context[-24:]))
        return f"What made “{visible(self.token)}” likelier {than} after “{before}”"

    @property
    def total(self) -> float:
        """The difference of logits that all parts make together."""
        return float(self.values_P.sum())

    def numbers(self) -> dict[str, Any]:
        """Return the contribution of each part in logits."""
        parts = dict(zip(self.names, self.values_P.tolist(), strict=True))
        return {
            "context": "".join(self.context), "token": self.token, "versus": self.versus,
            "probability": self.probability, "total": self.total, "parts": parts,
        }  # fmt: skip

    def figure(self) -> Figure:
        """Return a map of the heads by layer beside bars of everything else."""
        from quill.lab.drawing.attribution import draw_attribution

        sums = f"all together: {self.total:+.2f} logits; probability {100 * self.probability:.1f} %"
        return draw_attribution(self.names, self.values_P, self.n_head, f"{self.title}\n{sums}")


def attribute(
    subject: Subject, text: Text, *, position: int = -1, token: int | str | None = None, versus: int | str | None = None
) -> Attribution:
    """Return what each part adds to the logit of `token` as the successor of the token at `position`.

    Without `token` it is the likeliest one. `versus` is the token to compare with; without it, it is the mean over the
    vocabulary. What does not exist is a ConfigError.
    """
    found = residual_parts(subject, text, position)
    at = check_position(position, len(found.trace.tokens))
    logits_V = found.trace["logits_TV"][at].astype(np.float64)
    chosen = int(logits_V.argmax()) if token is None else check_token(subject, token)
    unembedding = Unembedding(subject.model, found.total_TD())
    added_PV = np.concatenate([unembedding.logits_of(found.parts_PTD[:, 0]), unembedding.constant_V[None]])
    if versus is None:
        values_P, other = added_PV[:, chosen] - added_PV.mean(1), None
    else:
        against = check_token(subject, versus)
        values_P, other = added_PV[:, chosen] - added_PV[:, against], labels_of(subject, [against])[0]
    odds_V = np.exp(logits_V - logits_V.max())
    return Attribution(
        context=found.trace.labels[: at + 1],
        token=labels_of(subject, [chosen])[0],
        versus=other,
        names=[*found.names, "constant"],
        values_P=values_P,
        probability=float(odds_V[chosen] / odds_V.sum()),
        n_head=subject.model.config.n_head,
    )
