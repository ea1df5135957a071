"""Replace submodules of a finished model with faster ones that compute the same results.

A faster module implements the formula of one class. The class may have been edited without a change in its parameters.
So each faster module is compared with the module that it replaces before it is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quill.model.modes import evaluation_mode

M = TypeVar("M", bound=nn.Module)

Warn = Callable[[str], None]


def no_warning(message: str) -> None:
    """Ignore a warning."""


@dataclass(frozen=True)
class Replacement:
    """A class and its faster replacement.

    `faster` is a subclass, or a function that returns the faster module for a module. `compare(module, faster)` returns
    whether both give the same results; None means that there is nothing to compare, because the class is PyTorch's own.
    """

    kind: type[nn.Module]
    faster: type[nn.Module] | Callable[[Any], nn.Module]
    compare: Callable[[Any, Any], bool] | None = None

    def make(self, module: nn.Module) -> nn.Module:
        """Return the faster module for a module, with the same parameters."""
        return as_subclass(module, self.faster) if isinstance(self.faster, type) else self.faster(module)


def replace_modules(model: nn.Module, replacement: Replacement, warn: Warn = no_warning, check: bool = True) -> None:
    """Replace each submodule whose class is exactly `replacement.kind`. Parameters and their names stay.

    A module whose results differ from those of its replacement is kept, and `warn` is called with one line.
    `check=False` compares nothing, because fake tensors have no values. The global RNG state does not change.
    """
    differs = False
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is not replacement.kind:
                continue
            faster = replacement.make(module)
            if not check or _agree(module, faster, replacement.compare):
                setattr(parent, name, faster)
            else:
                differs = True
    if differs:
        warn(
            f"{replacement.kind.__name__} computes something else than its faster version for CPUs (was it edited?): "
            f"training uses the model's own code"
        )


def as_subclass(module: nn.Module, kind: type[M]) -> M:
    """Return an instance of `kind`, a subclass of the module's class, with the module's parameters and attributes."""
    made = kind.__new__(kind)
    made.__dict__ = {k: copy.copy(v) if isinstance(v, dict | set) else v for k, v in vars(module).items()}
    return made


def same_results(module: nn.Module, other: nn.Module, call: Callable[..., Tensor], *inputs: Tensor) -> bool:
    """Return whether `call(module, *inputs)` gives the same output and gradients with both modules.

    Gradients of parameters are compared too: a parameter may not change the output yet, such as a gate that starts at 0
    or a gain that starts at 1.
    """
    results = []
    for each in (module, other):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = call(each, *leaves)
        weights = random_tensor(*output.shape, seed=1).to(output.dtype)
        gradients = torch.autograd.grad(output, [*leaves, *each.parameters()], weights, allow_unused=True)
        results.append([output.detach(), *gradients])
    return all(_close(found, expected) for expected, found in zip(*results, strict=True))


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """Return numbers from N(0, 1), the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _agree(module: nn.Module, faster: nn.Module, compare: Callable[[Any, Any], bool] | None) -> bool:
    if compare is None:
        return True
    try:
        with evaluation_mode(module), evaluation_mode(faster), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            return compare(module, faster)
    except Exception:  # an edited module may take other arguments, or lack a method
        return False


def _close(found: Tensor | None, expected: Tensor | None) -> bool:
    """Return whether two results agree to 1e-4 of the largest value of a row, plus 1e-6 of the largest of all."""
    if found is None or expected is None:
        return found is expected
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    sizes = expected.abs()
    tolerance = 1e-4 * sizes.amax(-1, keepdim=True) + 1e-6 * sizes.max()
    return bool(((found - expected).abs() <= tolerance).all())
