"""PlannedRun: the configurations of a run that has not started."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from quill.model.config import ModelConfig
from quill.training.config import TrainConfig
from quill.training.context import RunContext


@dataclass(frozen=True)
class PlannedRun:
    """The three configurations that decide what a run costs."""

    model: ModelConfig
    config: TrainConfig
    context: RunContext

    def change(self, **values: Any) -> PlannedRun:
        """Return the run with some fields changed, in whichever of the three configurations has them."""

        def changed(part: Any) -> Any:
            names = {field.name for field in fields(part)}
            return replace(part, **{name: value for name, value in values.items() if name in names})

        return PlannedRun(changed(self.model), changed(self.config), changed(self.context))

    @property
    def tokens_per_micro_batch(self) -> int:
        return self.config.batch_size * self.model.block_size
