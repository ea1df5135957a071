"""The processes of one run as an object: decisions, values and tensors that they share.

A process alone is a group of one, in which every method returns its argument, so callers need no second way. Values are
sent as JSON, never as pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from quill.distributed.environment import ONE_PROCESS, Ranks
from quill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FINISHED, INTERRUPTED = "finished", "interrupted"


class Group:
    """The processes of a run. Every method is called by all of them, at the same point of the run."""

    def __init__(self, ranks: Ranks = ONE_PROCESS) -> None:
        self.ranks = ranks

    @property
    def first(self) -> bool:
        """Whether this process is rank 0, which decides, prints and writes files."""
        return self.ranks.rank == 0

    @property
    def alone(self) -> bool:
        """Whether the run has one process."""
        return self.ranks.world_size == 1

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.alone else bool(self._largest(int(flag)))

    def decide(self, reason: str) -> str:
        """Return why the run ends, the same in all processes: a signal to any of them, or the reason of rank 0."""
        if self.alone:
            return reason
        code = 2 if reason == INTERRUPTED else int(self.first and reason != FINISHED)
        largest = self._largest(code)
        return str(self.share(reason)) if largest == 1 else (FINISHED, "", INTERRUPTED)[largest]

    def share(self, value: Any) -> Any:
        """Return rank 0's value, which consists of what JSON has."""
        if self.alone:
            return value
        import torch
        import torch.distributed as dist

        content = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        packed = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.first else None
        received = torch.empty(int(length), dtype=torch.uint8) if packed is None else packed
        dist.broadcast(received, 0)
        return value if self.first else json.loads(received.numpy().tobytes())

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, with the same bits in all of them."""
        if self.alone:
            return tensor
        import torch.distributed as dist

        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of the processes' tensors, with the same bits in all of them."""
        return tensor if self.alone else self.sum(tensor) / self.ranks.world_size

    def overwrite(self, tensors: Iterable[Tensor]) -> None:
        """Replace the contents of these tensors by those of rank 0."""
        if self.alone:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)

    def share_out(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a function that computes `function` of N tensors, stacked, each in one process only.

        The result for a tensor may not depend on the others, and has its shape.
        """
        if self.alone:
            return function

        def shared(stacked_N: Tensor) -> Tensor:
            import torch
            import torch.distributed as dist

            count = -(-len(stacked_N) // self.ranks.world_size)
            mine_N = function(stacked_N[self.ranks.rank * count : (self.ranks.rank + 1) * count])
            padded_N = mine_N.new_zeros(count, *stacked_N.shape[1:])
            padded_N[: len(mine_N)] = mine_N
            parts = [torch.empty_like(padded_N) for _ in range(self.ranks.world_size)]
            dist.all_gather(parts, padded_N)
            return torch.cat(parts)[: len(stacked_N)]

        return shared

    def draw_own_numbers(self, seed: int, step: int) -> None:
        """Seed PyTorch's generator for a step, in every process but rank 0: each drops other activations.

        Rank 0 keeps its generator, whose state is in every checkpoint. So a checkpoint does not depend on the number of
        processes, and resuming draws the same numbers.
        """
        if self.first:
            return
        import numpy as np
        import torch

        words = np.random.SeedSequence([seed, self.ranks.rank, step]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def select_device(self, name: str) -> str:
        """Return the device of this process: `auto` and `cuda` are the GPU of its local rank, made the current one."""
        if self.alone:
            return name
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name == "cpu" or (name == "auto" and not gpus):
            return "cpu"
        if name not in ("auto", "cuda"):
            raise ConfigError(f"device={name!r} is for one process: with several, use cpu or cuda")
        if self.ranks.local_rank >= gpus > 0:
            raise ConfigError(
                f"this machine has {gpus} GPU{'s' * (gpus != 1)} and at least {self.ranks.local_rank + 1} processes: "
                "start one process per GPU, or set device=cpu"
            )
        if not gpus:
            return name
        torch.cuda.set_device(self.ranks.local_rank)  # for NCCL
        return f"cuda:{self.ranks.local_rank}"

    def _largest(self, number: int) -> int:
        import torch
        import torch.distributed as dist

        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)


ALONE = Group()
"""The group of a run in one process."""
