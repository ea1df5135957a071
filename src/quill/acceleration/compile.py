"""torch.compile with a fallback to eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from quill.errors import first_line
from quill.model.build import Model


def compile_choice(setting: bool | Literal["auto"], captured: bool) -> bool | Literal["auto"]:
    """Return whether to compile a model: with "auto" it is not compiled if steps are captured as a CUDA graph.

    Compiling takes about a minute before the first step, which pays only in long runs. `--compile=True` compiles the
    model and captures the compiled step.
    """
    return False if captured and setting == "auto" else setting


def compile_model(
    model: Model, choice: bool | Literal["auto"], example_BT: Tensor, warn: Callable[[str], None]
) -> Callable[[Tensor], Tensor]:
    """Return the function to call in training: the compiled model, or the model itself.

    "auto" compiles on CUDA. The model is compiled at once, forward and backward, on a batch of the shape that training
    uses. If that fails, there is one warning and training continues in eager mode.
    """
    if choice is False or (choice == "auto" and example_BT.device.type != "cuda"):
        return model
    compiled = torch.compile(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own: old names inside PyTorch, advice to use TF32
            compiled(example_BT).float().sum().backward()
    except Exception as error:  # for example a missing C++ compiler, an old GPU, a bug in the compiler
        warn(
            f"training continues without torch.compile, which failed ({first_line(error)}); "
            "compile=False does not try it"
        )
        compiled = model
    model.zero_grad(set_to_none=True)
    return compiled
