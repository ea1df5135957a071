"""The whole training step as one CUDA graph: captured once, then replayed by the GPU with one call from Python.

A step of a small model is about a thousand kernels of a few microseconds each, and Python takes longer to launch each.
In a graph they follow each other without Python: batch, forward, backward, clipping and update are one launch. The step
that is captured is the one of training/step.py. What changes from step to step has fixed addresses on the device: the
starts of the windows (`DeviceBatches.starts_B`), learning rates, and the random number generator's counter, which
PyTorch advances at each replay by as much as the step would have drawn, so that dropout stays as it was.

Not captured: float16, whose loss scaling reads gradients to decide; gradient checkpointing, which saves and restores
the generator inside the step; a text that does not fit into the device's memory. These take the step in eager mode.

CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (Ng et al. 2021, "Accelerating PyTorch
with CUDA Graphs").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quill.acceleration.cuda_graph import GraphCapture
from quill.errors import first_line
from quill.optim.optimizer import put_learning_rates_on_device
from quill.training.batches import BatchPlan, DeviceBatches, text_fits
from quill.training.context import RunContext
from quill.training.step import TrainStep

Result = tuple[Tensor, Tensor]
"""loss and gradient norm of a step, on the device"""

WARM_UP_STEPS = 3  # eager steps before the capture: libraries choose kernels, and optimizer state gets its memory


def can_be_captured(context: RunContext, tokens: np.ndarray) -> bool:
    """Say whether steps of this run on these tokens can become a CUDA graph."""
    return suits_a_graph(context) and text_fits(tokens, context.device)


def suits_a_graph(context: RunContext) -> bool:
    """Say whether steps of this run can be captured, whatever the text."""
    device, dtype = context.device, context.dtype
    return device.type == "cuda" and dtype != torch.float16 and not context.gradient_checkpointing


def captured_step(
    step: TrainStep, tokens: np.ndarray, plan: BatchPlan, graphs: GraphCapture, warn: Callable[[str], None]
) -> CapturedStep:
    """Return the step as a CUDA graph, which is captured after some warm-up steps."""
    device = graphs.device
    put_learning_rates_on_device(step.optimizer, device)
    return CapturedStep(step, DeviceBatches(tokens, plan, device), graphs, warn)


class CapturedStep:
    """A step that is taken in eager mode a few times, then captured, and replayed from then on.

    The warm-up steps are steps of the run like all others, so nothing has to be undone. If the capture fails there is
    one warning, and steps stay in eager mode. The loss and norm that it returns are overwritten by the next step.
    """

    def __init__(self, step: TrainStep, batches: DeviceBatches, graphs: GraphCapture, warn: Callable[[str], None]):
        self.step, self.batches, self.graphs, self.warn = step, batches, graphs, warn
        self.warm_up_steps = WARM_UP_STEPS
        self.replay: Callable[[], Result] | None = None

    def __call__(self, number: int) -> Result:
        self.batches.set_step(number)
        if self.warm_up_steps:
            self.warm_up_steps -= 1
            return self.graphs.warm_up(self.run)
        if self.replay is None:
            self.replay = self.capture()
        return self.replay()

    def run(self) -> Result:
        """Take the step: the function that is captured."""
        return self.step(*self.batches.cut())

    def capture(self) -> Callable[[], Result]:
        """Return the replay of the step, or the eager step if the capture fails."""
        try:
            return self.graphs.capture(self.run)
        except Exception as error:  # an operation that reads from the device, too little memory, an old driver
            self.warn(f"training without a CUDA graph: capturing the training step failed ({first_line(error)})")
            self.step.optimizer.zero_grad(set_to_none=True)  # what was captured of them holds nothing
            return self.run
