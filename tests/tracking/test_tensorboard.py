"""TensorBoard gets the numbers and the samples."""

from __future__ import annotations

import pytest

from quill.errors import MissingDependencyError
from quill.tracking.tensorboard import TensorBoard


def test_tensorboard_gets_every_number_and_every_sample(events, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events.send(TensorBoard(tmp_path), events.run)
    stored = EventAccumulator(str(tmp_path))
    stored.Reload()
    assert [(e.step, e.value) for e in stored.Scalars("evaluation/val_loss")] == [(0, pytest.approx(4.2)), (50, 2.5)]
    names = {"step/learning_rate", "step/gradient_norm", "evaluation/bits_per_character"}
    assert names <= set(stored.Tags()["scalars"])


def test_missing_tensorboard_is_named_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
