"""Hooks on a finished model: read or replace what a submodule computes, for the duration of a block.

`nn.Module` has hooks for the inputs and outputs of a module. The heads of an attention layer are neither: they are the
result of its method `attend`. So `replacing_attend` puts a function in front of that method, on this one object, and
takes it away again.

Shapes: B batch, H heads, T time (new tokens), S time (all tokens), E size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from quill.lab.subject import attention_of
from quill.model.build import Model

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_BHTE, k_BHSE, v_BHSE) to heads_BHTE."""


@contextmanager
def replacing_attend(
    model: Model, layer: int, function: Callable[[Attend, Tensor, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Let `function(attend, q_BHTE, k_BHSE, v_BHSE)` return heads_BHTE of a layer instead of `attend`.

    Blocks may be nested: the inner function gets the outer one as its `attend`.
    """
    attention = attention_of(model, layer)
    before: Attend = attention.attend  # type: ignore[assignment]
    own = vars(attention).get("attend")

    def attend(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        return function(before, q_BHTE, k_BHSE, v_BHSE)

    object.__setattr__(attention, "attend", attend)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(attention, "attend")
        else:
            object.__setattr__(attention, "attend", own)


@contextmanager
def replacing_heads(model: Model, layer: int, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what the heads of a layer give to its output projection by `function(heads_BHTE)`."""
    with replacing_attend(model, layer, lambda attend, q, k, v: function(attend(q, k, v))):
        yield


@contextmanager
def replacing_output(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of a module by `function(output)`."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return function(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replacing_input(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the first argument of a module by `function(argument)`."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (function(inputs[0]), *inputs[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
