"""Bytes of the tensors of a training step, and FLOPs of its matrix products, without computing it.

One step runs on fake tensors (shapes, no data), and the bytes alive are counted at each operation. It runs the model's
own code, so the figures follow every change of the model.

Fake tensors: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from quill.evaluation.loss import cross_entropy
from quill.model.build import build_model
from quill.model.gpt import Attention
from quill.model.modern import Attention as ModernAttention
from quill.planning.planned_run import PlannedRun
from quill.training.parameter_groups import build_optimizer
from quill.training.setup import accelerate

aten = torch.ops.aten
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,  # it lacks the CPU's fused attention, whose first arguments are those of a GPU's
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_efficient_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_efficient_attention_backward
    ],
}


@dataclass(frozen=True)
class StepCost:
    """Cost of a step: bytes of tensors, and FLOPs."""

    weights: int
    optimizer: int
    activations: int
    """peak bytes besides these two: activations, and gradients as they replace activations"""
    evaluating: int
    """peak bytes besides weights and optimizer state during an evaluation"""
    flops: int
    """of a micro-batch forward and backward, including what gradient checkpointing recomputes"""
    evaluation_flops: int
    """of a micro-batch forward"""
    update_flops: int = 0
    """of an update: Muon multiplies matrices"""


class TensorCounter(TorchDispatchMode):
    """Counts the bytes of all tensors alive, their peak, and FLOPs, at every tensor operation."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_sparse:  # sparse gradients: a few thousand rows
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        if count := FLOPS.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:  # a view, or the result of an operation in place
            return

        def release(_: object) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, release)
        self.live += size


@functools.lru_cache(maxsize=64)
def trace_step(run: PlannedRun) -> StepCost:
    """Return the cost of one step of this run, traced on fake tensors (shapes, no data).

    This takes a fraction of a second and no memory. The step of every device is traced as on the CPU, except that a
    GPU's attention never stores its weights.
    """
    config, context = run.config, run.context
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=context.dtype != torch.float32)
    with FakeTensorMode(), TensorCounter() as counter:
        model = build_model(run.model)
        if context.device.type == "cuda":
            for module in model.modules():
                if isinstance(module, Attention | ModernAttention):
                    module.dropout = 0.0  # only the CPU's attention stores its weights when there is dropout
        weights = counter.live
        optimizer = build_optimizer(model, config)
        accelerate(model, config, context, check=False)
        tokens_BT = torch.zeros(config.batch_size, run.model.block_size, dtype=torch.long)
        for _ in range(min(2, config.gradient_accumulation_steps)):  # later ones are like the second
            counter.flops = 0
            with autocast:
                loss = cross_entropy(model(tokens_BT), tokens_BT)
            loss.backward()
            del loss
        activations = counter.peak - weights
        flops, held = counter.flops, counter.live
        optimizer.step()
        state, update_flops = counter.live - held, counter.flops - flops
        optimizer.zero_grad(set_to_none=True)
        counter.peak = counter.flops = 0
        model.eval()
        with torch.no_grad(), autocast:
            cross_entropy(model(tokens_BT), tokens_BT)
        evaluating = counter.peak - weights - state
        return StepCost(weights, state, activations, evaluating, flops, counter.flops, update_flops)
