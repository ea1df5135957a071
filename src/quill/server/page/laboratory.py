"""Computations of the page about one model: one at a time, in a thread of their own.

The laboratory's instruments put hooks on the model, so two of them cannot use it at once. The event loop and the thread
that writes text are never held up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from quill.engines.request import BusyError
from quill.lab.ablation.cost import text_windows
from quill.lab.windows import losses_per_window
from quill.runs.run_text import text_of_run
from quill.server.switched_models import whole_id

if TYPE_CHECKING:
    from torch import Tensor

    from quill.data.mixed_dataset import AnyDataset
    from quill.server.served_models import ServedModel

Answer = TypeVar("Answer")

MOST_WAITING = 32
"""Questions about one model that may wait. A further one is refused."""
WINDOWS = 32
"""Windows of the validation split on which losses are measured."""


class Laboratory:
    """The thread in which questions about one model are answered, and what they share."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="laboratory")
        self._waiting = 0
        self.maps: tuple[object, Any] | None = None
        """the attention maps of the last question, and what was asked: the page asks for rows of them next"""
        self._windows_of = ""
        self._windows: tuple[Tensor, np.ndarray] | None = None

    async def answer(self, compute: Callable[..., Answer], *arguments: Any) -> Answer:
        """Return `compute(*arguments)`, computed after the questions before it; BusyError if there are too many."""
        if self._waiting >= MOST_WAITING:
            raise BusyError(f"{MOST_WAITING} questions about this model wait already: ask again later")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, compute, *arguments)
        finally:
            self._waiting -= 1

    def windows(self, served: ServedModel) -> tuple[Tensor, np.ndarray]:
        """Return windows of the run's validation split, and the loss of the whole model on each.

        CorpusError or CheckpointError if the run's text is not there any more.
        """
        if self._windows is None or self._windows_of != served.hash:  # the run may have a newer checkpoint
            model = served.language_model
            tokens_NT = text_windows(model, np.asarray(dataset_of(served).val), WINDOWS)
            self._windows_of = served.hash
            self._windows = tokens_NT, losses_per_window(model.model, tokens_NT)
        return self._windows


class Laboratories:
    """The laboratory of each served model, which those with parts switched off share."""

    def __init__(self) -> None:
        self._by_id: dict[str, Laboratory] = {}

    def of(self, served: ServedModel) -> Laboratory:
        """Return the laboratory of a model."""
        return self._by_id.setdefault(whole_id(served.id), Laboratory())


def dataset_of(served: ServedModel) -> AnyDataset:
    """Return the text that a model was trained on; CorpusError or CheckpointError if it cannot be found."""
    checkpoint = served.language_model.checkpoint
    assert checkpoint is not None  # served models are loaded from files
    return text_of_run(served.folder, checkpoint, None, lambda what, share: None)
