"""The whole training step as one CUDA graph: captured once, then replayed by the GPU with one call from Python.

A step of a small model has about a thousand kernels of a few microseconds each, and Python takes longer to launch them.
As a graph, the whole step (batch, forward, backward, clipping, update) is one launch. The captured step is that of
training/step.py. Values that change from step to step have fixed addresses on the device: the starts of the windows
(`DeviceBatches.starts_B`), learning rates, and the counter of the random number generator, which PyTorch advances at
each replay by as much as the step draws, so that dropout is as in eager mode.

These run in eager mode instead: float16, because loss scaling reads gradients back; gradient checkpointing, because it
saves and restores the generator's state inside the step; a text that does not fit into the device's memory; several
processes, which exchange gradients between their backward passes and updates.

CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (Ng et al. 2021, "Accelerating PyTorch
with CUDA Graphs").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quill.acceleration.cuda_graph import GraphCapture
from quill.data.mixed_tokens import Tokens
from quill.errors import first_line
from quill.optim.optimizer import put_learning_rates_on_device
from quill.training.batches import BatchPlan, DeviceBatches, text_fits
from quill.training.context import RunContext
from quill.training.step import TrainStep

Result = tuple[Tensor, Tensor]
"""loss and gradient norm of a step, on the device"""

WARM_UP_STEPS = 3  # eager steps before the capture: libraries choose kernels, and optimizer state gets its memory


def can_be_captured(context: RunContext, tokens: Tokens) -> bool:
    """Return whether steps of this run on these tokens can be captured as a CUDA graph."""
    return suits_a_graph(context) and text_fits(tokens, context.device)


def suits_a_graph(context: RunContext) -> bool:
    """Return whether steps of this run can be captured if the text fits into the device's memory."""
    device, dtype = context.device, context.dtype
    plain = dtype != torch.float16 and not context.gradient_checkpointing
    return device.type == "cuda" and plain and context.group.alone


def captured_step(
    step: TrainStep, tokens: Tokens, plan: BatchPlan, graphs: GraphCapture, warn: Callable[[str], None]
) -> CapturedStep:
    """Return the step as a CUDA graph that is captured after some warm-up steps."""
    device = graphs.device
    put_learning_rates_on_device(step.optimizer, device)
    return CapturedStep(step, DeviceBatches(tokens, plan, device), graphs, warn)


class CapturedStep:
    """A step that runs in eager mode a few times, is then captured, and replayed from then on.

    The warm-up steps are ordinary steps of the run, so nothing has to be undone. If the capture fails there is one
    warning, and steps stay in eager mode. The returned loss and norm are overwritten by the next step.
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
        """Run the step in eager mode: the function that is captured."""
        return self.step(*self.batches.cut())

    def capture(self) -> Callable[[], Result]:
        """Return the replay of the step, or the eager step if the capture fails."""
        try:
            return self.graphs.capture(self.run)
        except (
            Exception
        ) as error:  # for example an operation that reads from the device, too little memory, an old driver
            self.warn(f"training without a CUDA graph: capturing the training step failed ({first_line(error)})")
            self.step.optimizer.zero_grad(set_to_none=True)  # gradients of the failed capture have no values
            return self.run
