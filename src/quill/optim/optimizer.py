"""The optimizer: parameter groups, each updated by AdamW, Muon or row-wise Adam.

The update rules are pure functions: PyTorch's fused `adamw`, muon.py and rowwise_adam.py. The class around them is not
torch.optim.Optimizer, because that one imports PyTorch's compiler at its first use, which takes a second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from quill.optim.muon import MOMENTUM, muon_update, orthogonalize, scaled_updates
from quill.optim.rowwise_adam import rowwise_adam_update

EPS = 1e-8

KEYS_IN_FORMAT_1 = {"row_moments": "readings"}
"""Keys of optimizer state that have another name in checkpoints of format 1."""


class Shards(Protocol):
    """Weights of which each process has some rows (acceleration/fully_sharded.py)."""

    def local(self, tensor: Tensor) -> Tensor:
        """Return this process's rows of a weight or gradient."""
        ...

    def at_owners(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        rows: Sequence[Tensor],
        update: Callable[[Sequence[str], Sequence[Tensor]], Sequence[Tensor]],
    ) -> list[Tensor]:
        """Return this process's rows of `update` of the whole matrices, given its rows of them."""
        ...


class Optimizer:
    """Updates parameter groups, each by its `kind`: muon, rowwise_adam, or AdamW for every other kind.

    `param_groups` and `state` are as in PyTorch's optimizers. A group also has the `names` of its parameters and
    `share`, the ratio of its learning rate to that of the recipe.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        self.param_groups = groups
        self.betas = betas
        self.state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)
        self.orthogonalize: Callable[[Tensor], Tensor] = orthogonalize
        """how Muon's updates are orthogonalized: here, or shared out among processes"""
        self.shards: Shards | None = None
        """given if each process updates its own rows of the weights; state is then that of these rows"""

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            named = [(n, w) for n, w in zip(group["names"], group["params"], strict=True) if w.grad is not None]
            if not named:
                continue
            state = [self.state_of(weight, group["kind"]) for _, weight in named]
            weights = [self.local(weight) for _, weight in named]
            gradients = [self.local(weight.grad) for _, weight in named]
            if group["kind"] == "muon" and self.shards is not None:
                self._sharded_muon_update(named, gradients, [each["momentum"] for each in state], group)
            elif group["kind"] == "muon":
                names, momenta = [name for name, _ in named], [each["momentum"] for each in state]
                matrices = (split_qkv(names, tensors) for tensors in (weights, gradients, momenta))
                settings = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
                muon_update(*matrices, **settings, orthogonalized=self.orthogonalize)
            elif group["kind"] == "rowwise_adam":
                settings = {"lr": group["lr"], "weight_decay": group["weight_decay"], "beta": self.betas[1]}
                for weight, gradient, each in zip(weights, gradients, state, strict=True):
                    rowwise_adam_update(weight, gradient, each["row_moments"], **settings)
            else:
                self._adamw_update(weights, gradients, state, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients, or set them to zero."""
        for group in self.param_groups:
            for weight in group["params"]:
                if set_to_none:
                    weight.grad = None
                elif weight.grad is not None:
                    weight.grad.zero_()

    def _adamw_update(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        state: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
        adamw(
            weights,
            gradients,
            [each["exp_avg"] for each in state],
            [each["exp_avg_sq"] for each in state],
            [],
            [each["step"] for each in state],
            # One kernel instead of a dozen operations for each parameter; PyTorch has it for these devices.
            fused=weights[0].device.type in ("cpu", "cuda", "mps"),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
        )

    def _sharded_muon_update(
        self,
        named: list[tuple[str, nn.Parameter]],
        gradients: list[Tensor],
        momenta: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update this process's rows as `muon_update` does. Only orthogonalization needs whole matrices."""
        assert self.shards is not None
        for gradient, momentum in zip(gradients, momenta, strict=True):
            momentum.lerp_(gradient, 1 - MOMENTUM)
            gradient.lerp_(momentum, MOMENTUM)
        names, weights = [name for name, _ in named], [weight for _, weight in named]
        updates = self.shards.at_owners(names, weights, gradients, whole_updates)
        for weight, update in zip(weights, updates, strict=True):
            self.local(weight).mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def local(self, tensor: Tensor) -> Tensor:
        """Return the rows of a weight or gradient that this process updates: all of them unless it has shards."""
        return tensor if self.shards is None else self.shards.local(tensor)

    def state_of(self, weight: nn.Parameter, kind: str) -> dict[str, Tensor]:
        """Return the state of a parameter: zeros before its first update."""
        state = self.state[weight]
        for key in state_keys(kind):
            if key not in state:
                state[key] = torch.zeros(state_shape(key, self.local(weight)), device=weight.device)
        return state


def split_qkv(names: Sequence[str], matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the matrices with each query-key-value projection split into its three, as views."""
    split: list[Tensor] = []
    for name, matrix in zip(names, matrices, strict=True):
        rows, columns = matrix.shape  # there are as many query rows as columns; keys and values may have fewer
        stacked = name.endswith("query_key_value.weight")
        split += matrix.split([columns, *2 * [(rows - columns) // 2]]) if stacked else [matrix]
    return split


def whole_updates(names: Sequence[str], matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return Muon's update of each weight, without the learning rate; a stacked projection has three."""
    updates = [torch.empty_like(matrix) for matrix in matrices]
    split = scaled_updates(split_qkv(names, matrices))
    for target, update in zip(split_qkv(names, updates), split, strict=True):
        target.copy_(update)
    return updates


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next steps; groups with a rate of their own keep their ratio to it."""
    for group in optimizer.param_groups:
        rate = learning_rate * group["share"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # the number is a kernel argument: no synchronisation
        else:
            group["lr"] = rate


def put_learning_rates_on_device(optimizer: Optimizer, device: torch.device) -> None:
    """Store learning rates as float32 tensors on the device, where a captured step reads them."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), device=device)


def state_keys(kind: str) -> tuple[str, ...]:
    """Return the state keys of each parameter in a group of this kind."""
    return {"muon": ("momentum",), "rowwise_adam": ("row_moments",)}.get(kind, ("step", "exp_avg", "exp_avg_sq"))


def state_shape(key: str, weight: Tensor) -> tuple[int, ...]:
    """Return the shape of this part of a parameter's state."""
    return {"step": (), "row_moments": (*weight.shape[:1], 2)}.get(key, tuple(weight.shape))


def key_in_format(key: str, format: int) -> str:
    """Return the name of a state key in checkpoints of a format."""
    return KEYS_IN_FORMAT_1.get(key, key) if format == 1 else key
