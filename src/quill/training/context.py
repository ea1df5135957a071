"""RunContext: where and how a run executes, resolved once before its first tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from quill.device import resolve_device, resolve_dtype
from quill.distributed.group import ALONE, Group
from quill.errors import ConfigError
from quill.files import expand_home


@dataclass(frozen=True)
class RunContext:
    """Device, number format, speed options and folder of a run. The recipe (TrainConfig) says what is computed."""

    out_dir: Path
    """folder of the run"""
    device: torch.device
    dtype: torch.dtype
    """number format of products under autocast; weights and optimizer state stay in float32"""
    compile: bool | Literal["auto"] = "auto"
    """whether torch.compile is used; "auto" on CUDA where steps cannot be captured as a graph"""
    gradient_checkpointing: bool = False
    """whether blocks recompute their activations in the backward pass"""
    log_interval: int = 10
    """steps between `step` events"""
    group: Group = ALONE
    """the processes of the run"""
    sharded: bool = False
    """whether each of several processes has some rows of every weight (parallel=fsdp)"""

    @property
    def autocast(self) -> torch.autocast:
        """Return a new autocast context for forward passes.

        Its cache is off: each weight is converted once in a micro-batch anyway, and a captured step would reuse
        conversions of old weights.
        """
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed, cache_enabled=False)


def resolve_context(
    out_dir: str | Path = "out",
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool | Literal["auto"] = "auto",
    gradient_checkpointing: bool = False,
    log_interval: int = 10,
    group: Group = ALONE,
    parallel: Literal["ddp", "fsdp"] = "ddp",
) -> RunContext:
    """Return the context of a run from its settings.

    An unavailable device or number format, or a setting that parallel=fsdp excludes, is a ConfigError.
    """
    where = resolve_device(group.select_device(device))
    format, sharded = resolve_dtype(dtype, where), parallel == "fsdp" and not group.alone
    if sharded and format == torch.float16:
        raise ConfigError("dtype=float16 is not possible with parallel=fsdp: use bfloat16 or float32")
    if sharded and compile is True:
        raise ConfigError("compile=True is not possible with parallel=fsdp: leave it out, or use parallel=ddp")
    return RunContext(
        expand_home(out_dir), where, format, compile, gradient_checkpointing, log_interval, group, sharded
    )
