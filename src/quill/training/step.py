"""One optimizer step: forward, loss, backward, clipping, and the weights have moved. The loop takes thousands of these.

Nothing in it looks at a value on its way (float16's loss scaling excepted), so that a GPU need never wait for the CPU,
and can take the whole step out of its own memory once it was recorded: training/graph.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.model.build import Model
from quill.optim.optimizer import Optimizer
from quill.training.config import TrainConfig


@dataclass(frozen=True)
class TrainStep:
    """What moves the weights of `model` by one batch. `forward` is the model, compiled or not."""

    model: Model
    forward: Callable[[Tensor], Tensor]
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    autocast: torch.autocast
    config: TrainConfig

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Move the weights by one batch, all its micro-batches; return loss and gradient norm, both on the device."""
        config = self.config
        loss = torch.zeros((), device=inputs_BT.device)
        micro_batches = zip(inputs_BT.split(config.batch_size), targets_BT.split(config.batch_size), strict=True)
        for micro_inputs_BT, micro_targets_BT in micro_batches:
            with self.autocast:
                micro_loss = cross_entropy(self.forward(micro_inputs_BT), micro_targets_BT)
            micro_loss = micro_loss / config.gradient_accumulation_steps  # the sum is then the large batch's mean
            self.scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]  (it asks for param_groups and step, no more)
        norm = clip_gradients(self.model, config.grad_clip)
        # A GPU multiplies in bfloat16 many times as fast, and Muon's products bear it (Jordan et al. 2024).
        with self.autocast if loss.is_cuda else contextlib.nullcontext():
            self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm


def clip_gradients(model: Model, max_norm: float) -> Tensor:
    """Scale all gradients together to a norm of at most `max_norm` (0: do not), and return the norm before."""
    gradients: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # one row for each table row that was used, however often
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm
