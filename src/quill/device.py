"""Device and number format of a run, CPU threads, and free memory.

`auto` is the first that works of CUDA, Apple's MPS and the CPU. PyTorch is imported where it is needed, because its
import takes over a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quill.errors import ConfigError

if TYPE_CHECKING:
    import torch

DRIVERS = {"cuda": ("/dev/nvidiactl", "/dev/dxg"), "hip": ("/dev/kfd", "/dev/dxg")}  # on Linux

DTYPES = ("auto", "fastest", "float32", "bfloat16", "float16")


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


def means_cpu(name: str) -> bool:
    """Return whether a device of this name is the CPU, as far as that can be known without importing PyTorch.

    "auto" is the CPU if PyTorch was built for nothing else, or if no driver of a GPU is installed.
    """
    if name != "auto" or sys.platform == "darwin":
        return name == "cpu"
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    about = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    built_for = re.findall(r"^(cuda|hip)\b[^=\n]*= *['\"]", about, re.MULTILINE)
    missing = sys.platform == "linux" and not any(Path(driver).exists() for k in built_for for driver in DRIVERS[k])
    return missing or not built_for


def cpu_threads() -> int:
    """Return how many threads compute on the CPU: PyTorch's number (without importing it), at most `usable_cores()`."""
    cores = usable_cores()
    if "torch" in sys.modules:
        return min(cores, sys.modules["torch"].get_num_threads())
    with contextlib.suppress(KeyError, ValueError):
        return max(1, min(cores, int(os.environ["OMP_NUM_THREADS"].split(",")[0])))
    import psutil

    return max(1, min(cores, psutil.cpu_count(logical=False) or cores))


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use at once: the smaller of its affinity and its container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(cores) for cores in _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> list[float]:
    """Return the number of cores that each control group of this process allows (Linux, cgroup v2 and v1)."""
    quotas = []
    for line in _read_words(root / "proc/self/cgroup", "\n"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # In a container, the container's own group may be mounted at the top, and the host's path does not exist.
        own = base / path.strip("/")
        for folder in [base, *(f for f in (own, *own.parents) if f.is_relative_to(base) and f != base)]:
            if controllers:
                words = [*_read_words(folder / "cpu.cfs_quota_us"), *_read_words(folder / "cpu.cfs_period_us")]
            else:
                words = _read_words(folder / "cpu.max")  # "max 100000" if there is no limit
            with contextlib.suppress(ValueError, ZeroDivisionError):
                quota, period = map(int, words)
                quotas += [quota / period] if quota > 0 else []
    return quotas


def _read_words(file: Path, separator: str | None = None) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").strip().split(separator)
    except OSError:
        return []


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the arithmetic: "auto" is bfloat16 (or float16) on CUDA, and float32 elsewhere.

    "fastest" is bfloat16 on a CPU too, if it has instructions for it. The format is that of autocast; weights stay in
    float32.
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype={name!r} is unknown: use one of {', '.join(DTYPES)}")
    if name in ("auto", "fastest"):
        if name == "fastest" and device.type == "cpu" and multiplies_bfloat16():
            return torch.bfloat16
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name == "float16" and device.type == "cpu":
        raise ConfigError("dtype='float16' is for a GPU: on the CPU use float32 or bfloat16")
    return getattr(torch, name)


def multiplies_bfloat16() -> bool:
    """Return whether this machine's CPU has instructions that multiply bfloat16 (AVX-512 BF16 or AMX)."""
    import torch

    can = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of PyTorch
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def describe_device(device: torch.device) -> str:
    """Return the device in words, such as "cpu (2 threads)" or "cuda (NVIDIA A100)"."""
    import torch

    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads != 1 else ''})"
    return device.type


def available_memory(device: torch.device | str) -> int:
    """Return the free memory of a device, in bytes."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
