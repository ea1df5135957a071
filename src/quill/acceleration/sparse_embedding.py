"""Sparse gradients of n-gram tables."""

from __future__ import annotations

from torch import nn

from quill.model.build import Model
from quill.model.modern import NGramEmbedding


def use_sparse_gradients(model: Model) -> None:
    """Make gradients of n-gram tables sparse: they hold only the rows that a step used.

    For CPUs, where clearing whole tables takes long. A GPU has the bandwidth, and a captured step must run the same
    operations each time.
    """
    for module in model.modules():
        if isinstance(module, NGramEmbedding):
            for table in module.tables:
                assert isinstance(table, nn.Embedding)
                table.sparse = True
