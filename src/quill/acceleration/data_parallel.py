"""Data parallelism: every process has the whole model and a part of each batch, and gradients are averaged.

PyTorch's DistributedDataParallel exchanges gradients while the backward pass still computes others (Li et al. 2020,
"PyTorch Distributed: Experiences on Accelerating Data Parallel Training"). Sparse gradients, those of
n-gram tables, are averaged after the backward pass. They are ready last anyway; and where DistributedDataParallel
exchanged them, a process crashed once in some thousand steps, because the memory of a thread of gloo had been
overwritten (PyTorch 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def data_parallel(model: nn.Module, example_BT: Tensor) -> DistributedDataParallel:
    """Return the model as a function whose backward pass averages dense gradients over all processes.

    The backward pass of an example is run at once, for two reasons. A weight that gets no gradient must be known before
    the first step. And after its first backward pass PyTorch rearranges the buckets in which gradients are summed. This
    may change the last bit of a sum of three or more, and a resumed run would differ from one that was not stopped. The
    RNG state does not change.
    """
    devices = [example_BT.device] if example_BT.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        model(example_BT).float().sum().backward()
        unused = any(each.grad is None for each in model.parameters() if each.requires_grad)
        sparse = [name for name, each in model.named_parameters() if each.grad is not None and each.grad.is_sparse]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sparse)
        model.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # the argument has another name from PyTorch 2.13 on
            warnings.simplefilter("ignore", FutureWarning)
            parallel = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unused
            )
        parallel(example_BT).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return parallel


def average_sparse_gradients(model: nn.Module) -> None:
    """Average the sparse gradients over all processes, in place."""
    average_gradients(each for each in model.parameters() if each.grad is not None and each.grad.is_sparse)


def average_gradients(weights: Iterable[Tensor]) -> None:
    """Average the gradients of these weights over all processes, in place; all have them for the same weights."""
    for weight in weights:
        if weight.grad is not None:
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()
