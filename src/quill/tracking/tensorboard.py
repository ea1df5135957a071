"""TensorBoard scalars and samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.errors import MissingDependencyError
from quill.tracking.tracker import is_finite_number

if TYPE_CHECKING:
    from quill.training.events import Event


class TensorBoard:
    """Writes the numbers of each event as TensorBoard scalars; MissingDependencyError if it is not installed."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "tensorboard=True needs TensorBoard: pip install tensorboard, or leave the setting out"
            ) from error
        self._open = lambda step: SummaryWriter(str(folder), purge_step=step or None)
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            self._writer = self._open(event["step"])
        if self._writer is None:
            return
        if event["event"] in ("step", "evaluation"):
            for name, value in event.items():
                if name != "step" and is_finite_number(value):
                    self._writer.add_scalar(f"{event['event']}/{name}", value, event["step"])
        elif event["event"] == "sample":
            self._writer.add_text("sample", "    " + event["text"].replace("\n", "\n    "), event["step"])
        elif event["event"] == "end":
            self._writer.close()
