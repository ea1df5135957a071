"""Maps of activation patching: layers down, positions or heads to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quill.lab.drawing.style import DIVERGING, new_figure, style, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "residual": "residual stream before each block",
    "attention": "output of attention",
    "feed_forward": "output of feed-forward",
    "head": "heads, all positions",
}


def draw_patching(
    shares: Mapping[str, np.ndarray], clean: Sequence[str], corrupted: Sequence[str], title: str
) -> Figure:
    """Draw a map for each kind of activation. Positions where the texts differ show both tokens."""
    labels = [visible(a) if a == b else f"{visible(a)}\n{visible(b)}" for a, b in zip(clean, corrupted, strict=True)]
    with style():
        rows = sum(len(share) for share in shares.values())
        figure, grid = new_figure(len(shares), 1, height=1.2 + 0.9 * len(shares) + 0.26 * rows, squeeze=False)
        image = None
        for axes, (kind, share) in zip(grid[:, 0], shares.items(), strict=True):
            image = axes.imshow(share, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
            axes.set_title(TITLES[kind])
            names = [str(layer) for layer in range(len(share))]
            if kind == "residual":
                names[-1] = "end"
            axes.set_yticks(range(len(share)), names)
            axes.set_ylabel("layer")
            if kind == "head":
                axes.set_xticks(range(share.shape[1]))
                axes.set_xlabel("head")
            elif len(labels) <= 64:
                axes.set_xticks(range(len(labels)), labels, fontsize=9 if len(labels) <= 40 else 7)
            axes.tick_params(length=0)
        if image is not None:
            figure.colorbar(
                image, ax=grid[:, 0].tolist(), shrink=0.7, extend="both", label="share of the difference restored"
            )
        figure.suptitle(
            f"{title}\nwhere the texts differ: clean token above, corrupted below", fontsize=10.5, x=0.01, ha="left"
        )
        return figure
