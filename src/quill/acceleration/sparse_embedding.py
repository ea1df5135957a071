"""Sparse gradients for n-gram tables."""

from __future__ import annotations

from torch import nn

from quill.model.build import Model
from quill.model.modern import NGramEmbedding


def touch_only_rows_read(model: Model) -> None:
    """Make gradients of n-gram tables hold only the rows that were read: what is not written need not be cleared.

    Applied from outside, on CPUs. A GPU has the bandwidth, and its steps must be the same operations each time.
    """
    for module in model.modules():
        if isinstance(module, NGramEmbedding):
            for table in module.tables:
                assert isinstance(table, nn.Embedding)
                table.sparse = True
