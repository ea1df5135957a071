"""torch.compile with a fallback to eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from quill.model.build import Model


def compile_choice(asked: bool | Literal["auto"], recorded: bool) -> bool | Literal["auto"]:
    """Return whether to compile a model: where steps are recorded only if that is asked for.

    A compiler takes about a minute before the first step, which only a long run can get back. What it compiles is
    recorded like everything else: `--compile=True` has both.
    """
    return False if recorded and asked == "auto" else asked


def compile_model(
    model: Model, choice: bool | Literal["auto"], example_BT: Tensor, warn: Callable[[str], None]
) -> Callable[[Tensor], Tensor]:
    """Return what to call for training: the compiled model, or the model itself where compiling does not pay or fails.

    "auto" compiles on CUDA. Compilation is tried at once, forward and backward, on a batch of the shape that training
    will use; if it fails, there is one warning and training goes on in eager mode.
    """
    if choice is False or (choice == "auto" and example_BT.device.type != "cuda"):
        return model
    compiled = torch.compile(model)
    try:
        compiled(example_BT).float().sum().backward()
    except Exception as error:  # a missing C++ compiler, an old GPU, a bug in the compiler: all end here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        warn(f"going on without torch.compile, which failed ({reason[:160]}); --compile=False does not try it")
        compiled = model
    model.zero_grad(set_to_none=True)
    return compiled
