"""What the tensors of a training step cost, exactly, without computing anything: bytes, and FLOPs of matrix products.

One step is played with tensors that have shapes but no contents, and what is alive is added up at each operation. It
is the model's own code that is played, so the figures stay right whatever becomes of it. Serves training/estimate.py.

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

from quill.acceleration.apply import apply_acceleration
from quill.device import resolve_dtype
from quill.evaluation.loss import cross_entropy
from quill.model.build import build_model
from quill.model.config import ModelConfig
from quill.model.gpt import Attention
from quill.model.modern import Attention as ModernAttention
from quill.training.config import TrainConfig, acceleration_of
from quill.training.parameter_groups import build_optimizer

aten = torch.ops.aten
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,  # it lacks the CPU's fused attention, which takes the same tensors first as a GPU's
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_efficient_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_efficient_attention_backward
    ],
}


@dataclass(frozen=True)
class StepCost:
    """What a step with one micro-batch size takes: bytes of tensors, and FLOPs."""

    weights: int
    optimizer: int
    working: int
    """most that is alive besides these two: activations, and gradients as they take the place of activations"""
    evaluating: int
    """most that is alive besides weights and optimizer state while evaluating"""
    flops: int
    """of a micro-batch forward and backward, including what gradient checkpointing computes twice"""
    evaluation_flops: int
    """of a micro-batch forward"""


class TensorCounter(TorchDispatchMode):
    """Sees every tensor operation: the bytes of all tensors alive, the most there have been, and the FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_sparse:  # that is: rows of tables, a few thousand
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        if count := FLOPS.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:  # a view, or the result of an operation in place
            return

        def forget(_: object) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size


@functools.lru_cache(maxsize=64)
def trace_step(model_config: ModelConfig, config: TrainConfig, device: torch.device) -> StepCost:
    """Return what a step of `train()` costs, by playing it; this takes a fraction of a second and no memory.

    Every device's step is played as on the CPU, a GPU's with attention that never stores its weights.
    """
    half = resolve_dtype(config.dtype, device) != torch.float32
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)
    with FakeTensorMode(), TensorCounter() as counter:
        model = build_model(model_config)
        if device.type == "cuda":
            for module in model.modules():
                if isinstance(module, Attention | ModernAttention):
                    module.dropout = 0.0  # only the CPU's attention stores its weights when there is dropout
        weights = counter.live
        optimizer = build_optimizer(model, config)
        apply_acceleration(model, device, **acceleration_of(config), check=False)
        tokens_BT = torch.zeros(config.batch_size, model_config.block_size, dtype=torch.long)
        for _ in range(min(2, config.gradient_accumulation_steps)):  # a third is like the second
            counter.flops = 0
            with autocast:
                loss = cross_entropy(model(tokens_BT), tokens_BT)
            loss.backward()
            del loss
        working = counter.peak - weights
        flops, held = counter.flops, counter.live
        optimizer.step()
        state = counter.live - held
        optimizer.zero_grad(set_to_none=True)
        counter.peak = counter.flops = 0
        model.eval()
        with torch.no_grad(), autocast:
            cross_entropy(model(tokens_BT), tokens_BT)
        return StepCost(weights, state, working, counter.peak - weights - state, flops, counter.flops)
