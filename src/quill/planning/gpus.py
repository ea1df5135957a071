"""GPUs that a run can be planned for without having one: memory, speed and links, from their vendors' datasheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quill.errors import ConfigError
from quill.validation import nearest, show

GPUS_OF_A_NODE = 8


@dataclass(frozen=True)
class GPU:
    """Limits of one GPU, in bytes, operations and seconds; links count one direction."""

    name: str
    memory: float
    bfloat16: float
    """dense products with float32 sums, FLOP/s; the larger figures of datasheets count zeros that are skipped"""
    float32: float
    """without tensor cores, FLOP/s: where weights and gradients are multiplied in full precision"""
    bandwidth: float
    """of its memory, bytes/s"""
    link: float
    """from a GPU to the others of its node, bytes/s"""
    network: float
    """from a node of 8 GPUs to others, bytes/s; 0 if the vendor has no such system"""
    source: str


ETHERNET = 12.5e9
"""Network of a node whose vendor has no system of several nodes: one port of 100 Gbit/s, bytes/s."""

_HOPPER = "NVIDIA H100 datasheet; 8 ports of 400 Gbit/s: NVIDIA DGX H100 datasheet"
GPUS = {
    "b200": GPU(
        "NVIDIA B200", 180e9, 2250e12, 75e12, 7.7e12, 900e9, 400e9, "NVIDIA HGX and DGX B200 datasheets, a GPU's share"
    ),
    "h200": GPU(
        "NVIDIA H200 SXM", 141e9, 989e12, 67e12, 4.8e12, 450e9, 400e9,
        "NVIDIA H200 datasheet; 8 ports of 400 Gbit/s: NVIDIA DGX H200 datasheet",
    ),
    "h100": GPU("NVIDIA H100 SXM", 80e9, 989e12, 67e12, 3.35e12, 450e9, 400e9, _HOPPER),
    "h100-pcie": GPU("NVIDIA H100 PCIe", 80e9, 756e12, 51e12, 2.0e12, 64e9, 0, "NVIDIA H100 datasheet"),
    "a100": GPU(
        "NVIDIA A100 80GB SXM", 80e9, 312e12, 19.5e12, 2.039e12, 300e9, 200e9,
        "NVIDIA A100 datasheet; 8 ports of 200 Gbit/s: NVIDIA DGX A100 datasheet",
    ),
    "a100-40gb": GPU(
        "NVIDIA A100 40GB SXM", 40e9, 312e12, 19.5e12, 1.555e12, 300e9, 200e9,
        "NVIDIA A100 datasheet; 8 ports of 200 Gbit/s: NVIDIA DGX A100 datasheet",
    ),
    "l40s": GPU("NVIDIA L40S", 48e9, 362e12, 91.6e12, 0.864e12, 32e9, 0, "NVIDIA L40S datasheet"),
    "l4": GPU("NVIDIA L4", 24e9, 121e12, 30.3e12, 0.3e12, 32e9, 0, "NVIDIA L4 datasheet"),
    "a10": GPU("NVIDIA A10", 24e9, 125e12, 31.2e12, 0.6e12, 32e9, 0, "NVIDIA A10 datasheet"),
    "rtx-4090": GPU(
        "NVIDIA GeForce RTX 4090", 24e9, 165.2e12, 82.6e12, 1.008e12, 32e9, 0,
        "NVIDIA Ada GPU Architecture whitepaper, appendix A",
    ),
    "rtx-3090": GPU(
        "NVIDIA GeForce RTX 3090", 24e9, 71e12, 35.6e12, 0.936e12, 32e9, 0,
        "NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A",
    ),
    "mi300x": GPU("AMD Instinct MI300X", 192e9, 1307e12, 163.4e12, 5.3e12, 448e9, 0, "AMD Instinct MI300X datasheet"),
}  # fmt: skip
"""GPUs by the name that `quill estimate --device` takes."""

HERE = re.compile(r"(auto|cpu|cuda|mps)(:\d+)?")


def find_gpu(name: str) -> GPU | None:
    """Return the GPU of this name, or None for a device of this machine; a ConfigError for any other name."""
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower())
    plain = re.sub(r"^(nvidia|amd)-", "", plain)
    plain = re.sub(r"^(rtx|mi)-?(\d)", lambda found: {"rtx": "rtx-", "mi": "mi"}[found[1]] + found[2], plain)
    if plain in GPUS:
        return GPUS[plain]
    if HERE.fullmatch(name):
        return None
    raise ConfigError(
        f"device={show(name)} is unknown{nearest(plain, GPUS)}: use auto, cpu, cuda or mps for this machine, or a GPU "
        f"to plan for: {', '.join(GPUS)}"
    )
