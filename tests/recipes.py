"""The recipe and the context of a short run, as tests hand them to `train`."""

from collections.abc import Callable
from typing import NamedTuple

from quill.training.config import TrainConfig
from quill.training.context import RunContext


class Recipe(NamedTuple):
    """A recipe and the context of a short run, in the order in which `train` takes them."""

    config: TrainConfig
    context: RunContext

    @property
    def out_dir(self) -> str:
        return str(self.context.out_dir)


MakeRecipe = Callable[..., Recipe]
