"""Full sharding: every process has some rows of each weight, of its gradient and of its optimizer state.

PyTorch's `fully_shard` gathers the weights of a block while it computes with them, and sums gradients so that each
process gets those of its rows (Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023, "PyTorch FSDP"). Two kinds
of weights stay whole in every process: those without dimensions, and n-gram tables with sparse gradients, of which a
step sends only the rows that it used.

Shapes: a weight has R rows. Of W processes, each has ⌈R / W⌉ of them, the last ones fewer or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from quill.acceleration.data_parallel import average_gradients
from quill.model.build import Model

Update = Callable[[Sequence[str], Sequence[Tensor]], Sequence[Tensor]]
"""Computes something of whole matrices, given with their names; the results have their shapes."""


class FullSharding:
    """Which rows of a model's weights are in which process of the run."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh(device.type, (self.world_size,))

    def shard(self, model: Model) -> None:
        """Keep only this process's rows of the weights. Parameters keep their names, and are other objects."""
        tables = [each.weight for each in model.modules() if isinstance(each, nn.Embedding) and each.sparse]
        whole = {*tables, *(each for each in model.parameters() if not each.dim())}
        for block in model.blocks:
            fully_shard(block, mesh=self.mesh, ignored_params=whole)
        fully_shard(model, mesh=self.mesh, ignored_params=whole)

    @contextmanager
    def unsynchronized(self, model: Model) -> Iterator[None]:
        """Backward passes in this context add up whole gradients in each process, and send none."""
        root = cast(FSDPModule, model)
        root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            root.set_requires_gradient_sync(True)

    def is_sharded(self, tensor: Tensor) -> bool:
        """Return whether a weight or gradient is divided among the processes."""
        return isinstance(tensor, DTensor)

    def local(self, tensor: Tensor) -> Tensor:
        """Return this process's rows of a weight or gradient: the tensor itself if it is whole in every process."""
        return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor

    def rows_of(self, rows: int, rank: int) -> slice:
        """Return which of R rows are in a process."""
        size = -(-rows // self.world_size)
        return slice(min(rank * size, rows), min((rank + 1) * size, rows))

    def part(self, whole: Tensor, weight: Tensor) -> Tensor:
        """Return a copy of this process's rows of a tensor that belongs to a weight, such as its optimizer state."""
        if not whole.dim() or not self.is_sharded(weight):
            return whole
        return whole[self.rows_of(len(whole), self.rank)].clone()

    def whole(self, part: Tensor, weight: Tensor) -> Tensor:
        """Return the rows of all processes of a tensor that belongs to a weight. All processes call this."""
        if not part.dim() or not self.is_sharded(weight):
            return part
        padded = part.new_zeros(-(-len(weight) // self.world_size), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[: len(weight)]

    def average_whole_gradients(self, model: Model) -> None:
        """Average the gradients of weights that are whole in every process, in place."""
        average_gradients(each for each in model.parameters() if not self.is_sharded(each))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def at_owners(
        self, names: Sequence[str], weights: Sequence[Tensor], rows: Sequence[Tensor], update: Update
    ) -> list[Tensor]:
        """Return this process's rows of `update` of the whole matrices, each computed in one process only.

        `rows` are this process's rows of the matrices, which belong to sharded weights. Each process sends its rows to
        the owners of the matrices, which send back the rows of the results.
        """
        shapes = [weight.shape for weight in weights]
        by_shape = sorted(range(len(shapes)), key=lambda index: tuple(shapes[index]))
        owned = [by_shape[rank :: self.world_size] for rank in range(self.world_size)]
        mine, ranks = owned[self.rank], range(self.world_size)

        def shape_of(index: int, rank: int) -> tuple[int, int]:
            part = self.rows_of(shapes[index][0], rank)
            return part.stop - part.start, shapes[index][1]

        arrived = self._exchange(
            [[rows[index] for index in owned[rank]] for rank in ranks],
            [[shape_of(index, rank) for index in mine] for rank in ranks],
        )
        matrices = [torch.cat(parts) for parts in zip(*arrived, strict=True)]
        results = update([names[index] for index in mine], matrices)
        parts = [
            [each[self.rows_of(shapes[index][0], rank)] for index, each in zip(mine, results, strict=True)]
            for rank in ranks
        ]
        returned = self._exchange(parts, [[shape_of(index, self.rank) for index in owned[rank]] for rank in ranks])
        found = {index: part for rank in ranks for index, part in zip(owned[rank], returned[rank], strict=True)}
        return [found[index] for index in range(len(weights))]

    def _exchange(
        self, parts: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[tuple[int, int]]]
    ) -> list[list[Tensor]]:
        """Send a list of matrices to each process, and return the lists that came from each, of these shapes."""
        device = self.mesh.device_type
        sent = [torch.cat([torch.empty(0, device=device), *(each.float().flatten() for each in to)]) for to in parts]
        sizes = [[rows * columns for rows, columns in came] for came in shapes]
        received = torch.empty(sum(map(sum, sizes)), device=device)
        dist.all_to_all_single(received, torch.cat(sent), [sum(each) for each in sizes], [len(each) for each in sent])
        per_rank = received.split([sum(each) for each in sizes])
        return [
            [flat.view(shape) for flat, shape in zip(came.split(lengths), of, strict=True)] if lengths else []
            for came, lengths, of in zip(per_rank, sizes, shapes, strict=True)
        ]
