"""Which device and number format a run uses, and how much memory is there: part of the ground floor.

`auto` takes the first that works of CUDA, Apple's MPS and the CPU. Nothing here is imported before it is needed,
because importing PyTorch takes over a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quill.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" is CUDA, else MPS, else the CPU. An absent device is a ConfigError."""
    import torch

    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if device is not None and device.type == "cuda" else 1
    if device is None or device.type not in available or (device.index or 0) >= count:
        raise ConfigError(f"device={name!r} is not on this machine: use one of auto, {', '.join(available)}")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the arithmetic: "auto" is bfloat16 (or float16) on CUDA, and float32 elsewhere.

    Weights stay in float32 whatever this says; the format is used by autocast.
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype={name!r} is unknown: use one of {', '.join(DTYPES)}")
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name == "float16" and device.type == "cpu":
        raise ConfigError("dtype='float16' is for a GPU: on the CPU use float32 or bfloat16")
    return getattr(torch, name)


def describe_device(device: torch.device) -> str:
    """Return the device in words, such as "cpu (2 threads)" or "cuda (NVIDIA A100)"."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads != 1 else ''})"
    return device.type


def available_memory(device: torch.device) -> int:
    """Return the bytes that a new run could still take on this device."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
