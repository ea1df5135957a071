"""One optimizer step: forward, loss, backward, clipping, update.

It reads no value back from the device (except for the loss scaling of float16). So a GPU never waits for the CPU, and
the whole step can be captured as a CUDA graph (training/graph_step.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.model.build import Model
from quill.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from quill.acceleration.fully_sharded import FullSharding


@dataclass(frozen=True)
class TrainStep:
    """Updates the weights of `model` by one batch. `forward` is the model, compiled or not."""

    model: Model
    forward: Callable[[Tensor], Tensor]
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    autocast: torch.autocast
    micro_batch_size: int
    accumulation_steps: int
    max_norm: float
    """maximum gradient norm; 0 never clips"""
    check: Callable[[], None] = lambda: None
    """called between micro-batches; raises to abandon the step"""
    unsynchronized: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    """the context of every micro-batch but the last: gradients are exchanged between processes once a step"""
    exchange: Callable[[], None] = lambda: None
    """called after the last micro-batch: averages the gradients that its backward pass has not averaged"""
    sharding: FullSharding | None = None
    """given if each process has some rows of the weights"""

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights by one batch, all its micro-batches; return loss and gradient norm, on the device."""
        return self.accumulate(inputs_BT, targets_BT), self.update()

    def accumulate(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Add up the gradients of all micro-batches; return the mean loss, on the device."""
        loss = torch.zeros((), device=inputs_BT.device)
        size = self.micro_batch_size
        for number, micro_batch in enumerate(zip(inputs_BT.split(size), targets_BT.split(size), strict=True)):
            if number:
                self.check()
            micro_inputs_BT, micro_targets_BT = micro_batch
            last = number == self.accumulation_steps - 1
            with contextlib.nullcontext() if last else self.unsynchronized():
                with self.autocast:
                    micro_loss = cross_entropy(self.forward(micro_inputs_BT), micro_targets_BT)
                micro_loss = micro_loss / self.accumulation_steps  # the sum is then the large batch's mean
                self.scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        self.exchange()
        return loss

    def update(self) -> Tensor:
        """Clip the gradients, update the weights and drop the gradients; return the gradient norm before clipping."""
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]  (only param_groups and step are needed)
        norm = clip_gradients(self.model, self.max_norm, self.sharding)
        # A GPU multiplies bfloat16 many times faster, and Muon's products tolerate it (Jordan et al. 2024).
        with self.autocast if norm.is_cuda else contextlib.nullcontext():
            self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def clip_gradients(model: Model, max_norm: float, sharding: FullSharding | None = None) -> Tensor:
    """Clip the gradient norm over all weights to `max_norm` (0: no clipping), and return the norm before clipping."""
    gradients: list[Tensor] = []
    parts: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # add up the gradients of a row that was used several times
            gradients.append(parameter.grad.values())
        elif sharding is not None and parameter.grad is not None and sharding.is_sharded(parameter):
            parts.append(sharding.local(parameter.grad))
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients)
    if sharding is None:
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
        return norm
    norm = (norm.square() + sharding.sum(torch.nn.utils.get_total_norm(parts).square())).sqrt()
    if max_norm:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as in clip_grads_with_norm_
        torch._foreach_mul_([*gradients, *parts], factor)
    return norm
