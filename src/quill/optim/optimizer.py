"""Which weights move how: AdamW for all of them, or Muon for the matrices inside the blocks, n-gram tables row by row,
and AdamW for the rest.

The rules themselves are pure functions: PyTorch's fused AdamW, and muon.py and rows.py. The class around them
is ours because PyTorch's loads its compiler at the first use, and with it a second goes by before the first step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from quill.optim.muon import move_by_muon
from quill.optim.rowwise_adam import move_rows

EPS = 1e-8


class Optimizer:
    """Moves groups of weights, each group by its `kind`: muon, rows, or AdamW for all others.

    `param_groups` and `state` are as in PyTorch's optimizers, and a group also carries the `names` of its weights.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        self.param_groups = groups
        self.betas = betas
        self.state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            named = [(n, w) for n, w in zip(group["names"], group["params"], strict=True) if w.grad is not None]
            if not named:
                continue
            weights, gradients = [weight for _, weight in named], [weight.grad for _, weight in named]
            state = [self._state(weight, group["kind"]) for weight in weights]
            if group["kind"] == "muon":
                names, momenta = [name for name, _ in named], [each["momentum"] for each in state]
                maps = (maps_in(names, tensors) for tensors in (weights, gradients, momenta))
                move_by_muon(*maps, lr=group["lr"], weight_decay=group["weight_decay"])
            elif group["kind"] == "rows":
                rates = {"lr": group["lr"], "weight_decay": group["weight_decay"], "beta": self.betas[1]}
                for weight, gradient, each in zip(weights, gradients, state, strict=True):
                    move_rows(weight, gradient, each["readings"], **rates)
            else:
                self._move_by_adamw(weights, gradients, state, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if set_to_none:
                    weight.grad = None
                elif weight.grad is not None:
                    weight.grad.zero_()

    def _move_by_adamw(
        self,
        weights: list[nn.Parameter],
        gradients: list[Tensor],
        state: list[dict[str, Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
        adamw(
            weights,  # type: ignore[arg-type]
            gradients,
            [each["exp_avg"] for each in state],
            [each["exp_avg_sq"] for each in state],
            [],
            [each["step"] for each in state],
            # One fused kernel instead of a dozen operations a weight; PyTorch has it for these devices.
            fused=weights[0].device.type in ("cpu", "cuda", "mps"),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
        )

    def _state(self, weight: nn.Parameter, kind: str) -> dict[str, Tensor]:
        """Return what is remembered of a weight; at its first step, zeros."""
        state = self.state[weight]
        for key in state_keys(kind):
            if key not in state:
                state[key] = torch.zeros(shape_of(key, weight), device=weight.device)
        return state


def maps_in(names: list[str], matrices: list[Tensor]) -> list[Tensor]:
    """Return the maps that these matrices are made of, as views: queries, keys and values are each a map for itself."""
    maps: list[Tensor] = []
    for name, matrix in zip(names, matrices, strict=True):
        rows, columns = matrix.shape  # queries take as many rows as there are columns; keys and values may take fewer
        stacked = name.endswith("query_key_value.weight")
        maps += matrix.split([columns, *2 * [(rows - columns) // 2]]) if stacked else [matrix]
    return maps


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Use this learning rate from the next step on; groups with a rate of their own keep their proportion to it."""
    for group in optimizer.param_groups:
        rate = learning_rate * group["share"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a kernel that carries the number: nothing waits
        else:
            group["lr"] = rate


def keep_rates_on(optimizer: Optimizer, device: torch.device) -> None:
    """Keep learning rates on the device from now on, in float32: a step that is replayed there finds them in place."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), device=device)


def state_keys(kind: str) -> tuple[str, ...]:
    """Return the names of what is remembered of each weight in a group of this kind."""
    return {"muon": ("momentum",), "rows": ("readings",)}.get(kind, ("step", "exp_avg", "exp_avg_sq"))


def shape_of(key: str, weight: Tensor) -> tuple[int, ...]:
    """Return the shape of what is remembered of a weight under this name."""
    return {"step": (), "readings": (weight.size(0), 2)}.get(key, tuple(weight.shape))
