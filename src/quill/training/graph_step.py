"""The whole training step as one CUDA graph: recorded once, then replayed by the GPU with one call from Python.

A step of a small model is some thousand kernels of a few microseconds each, and Python takes longer to ask for each.
Recorded, they follow each other without it: batch, forward, backward, clipping and update are one launch. What is
recorded is the step itself (training/step.py), nothing written anew. What changes from step to step lies at fixed
places on the device: where windows begin (`DeviceBatches.starts_B`), learning rates, and the random numbers' counter,
which PyTorch moves on at each replay by as much as the step would have drawn, so that dropout stays as it was.

Not recorded: float16, whose loss scaling looks at gradients to decide; gradient checkpointing, which saves and restores
random numbers half way; a text that does not fit into the device's memory. They take the step as it is.

CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (Ng et al. 2021, "Accelerating PyTorch
with CUDA Graphs").
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from quill.acceleration.cuda_graph import Recorder, Result, Run
from quill.data.dataset import Dataset
from quill.model.config import ModelConfig
from quill.optim.optimizer import put_learning_rates_on_device
from quill.training.batches import DeviceBatches, fetch_batch, text_fits
from quill.training.config import TrainConfig
from quill.training.step import TrainStep

REHEARSALS = 3  # steps taken before one is recorded: libraries choose kernels and moments get their memory


def can_be_recorded(config: TrainConfig, dataset: Dataset, device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether steps of this recipe on this text can become a CUDA graph."""
    return suits_a_graph(config, device, dtype) and text_fits(dataset, device)


def suits_a_graph(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether a recipe can be recorded, whatever its text."""
    return device.type == "cuda" and dtype != torch.float16 and not config.gradient_checkpointing


def choose_step(
    step: TrainStep,
    dataset: Dataset,
    model_config: ModelConfig,
    device: torch.device,
    recorder: Recorder | None,
    warn: Callable[[str], None],
) -> Callable[[int], Result]:
    """Return what takes the step of a given number: as it is, or recorded where there is a recorder."""
    if recorder is None:
        return lambda number: step(*fetch_batch(dataset, model_config, step.config, number, device))
    put_learning_rates_on_device(step.optimizer, device)
    batches = DeviceBatches(dataset, model_config, step.config, device)
    return RecordedStep(step, batches, recorder, warn)


class RecordedStep:
    """A step that is taken as it is a few times, then recorded, and from then on replayed.

    The first ones are steps of the run like all others, so nothing has to be undone. If recording fails there is one
    warning, and steps go on as they are. Loss and norm that it returns are overwritten by the next step.
    """

    def __init__(self, step: TrainStep, batches: DeviceBatches, recorder: Recorder, warn: Callable[[str], None]):
        self.step, self.batches, self.recorder, self.warn = step, batches, recorder, warn
        self.rehearsals = REHEARSALS
        self.replay: Run | None = None

    def __call__(self, number: int) -> Result:
        self.batches.aim(number)
        if self.rehearsals:
            self.rehearsals -= 1
            return self.recorder.rehearse(self.run)
        if self.replay is None:
            self.replay = self.recorded()
        return self.replay()

    def run(self) -> Result:
        """Take the step: the function that is recorded."""
        return self.step(*self.batches.cut())

    def recorded(self) -> Run:
        """Return the recording, or if it fails the step as it is."""
        try:
            return self.recorder.record(self.run)
        except Exception as error:  # an operation that reads from the device, too little memory, an old driver
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            self.warn(f"going on without a CUDA graph: recording the training step failed ({reason[:160]})")
            self.step.optimizer.zero_grad(set_to_none=True)  # what was recorded of them holds nothing
            return self.run
