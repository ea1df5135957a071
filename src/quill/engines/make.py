"""What every engine can do, and which one to take.

On the way text → tokens → model → training → generation → people an engine is the model as a writer sees it: texts in
numbered places (slots), read from a prompt and continued token by token. Engines differ in speed, not in what they
write. `torch_engine.py` is the reference, `numba_engine.py` the quick one for CPUs, `cuda_engine.py` that for GPUs.

Reference: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2, for prefill and decode.

Shapes: T steps, B texts, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from quill.checkpoints.format import Checkpoint
from quill.device import available_memory
from quill.engines.base import Engine
from quill.errors import ConfigError
from quill.model.config import ModelConfig
from quill.validation import require

if TYPE_CHECKING:
    import torch

    from quill.model.build import Model

ENGINES = ("auto", "torch", "numba", "cuda")

QUANTIZATIONS = (None, "int8")

PROCESSORS = ("x86_64", "AMD64", "arm64", "aarch64")  # for which Numba is published


def device_of(model: Model | Checkpoint) -> torch.device | str:
    """Return where a model is, or will be."""
    return model.device if isinstance(model, Checkpoint) else model.token_embedding.weight.device


def how_many_slots(config: ModelConfig, device: torch.device | str, at_most: int = 32) -> int:
    """Return how many texts may have their keys and values in memory at once: a quarter of what is free, at most 32."""
    heads = getattr(config, "n_kv_head", None) or config.n_head
    one = 2 * 4 * config.n_layer * heads * (config.n_embd // config.n_head) * config.block_size
    return max(1, min(at_most, available_memory(device) // 4 // one))


def make_engine(
    model: Model | Checkpoint,
    name: str = "auto",
    *,
    quantization: str | None = None,
    slots: int = 1,
    on_status: Callable[[str], None] | None = None,
) -> Engine:
    """Return an engine for a model by its name; "auto" is cuda on such a GPU, Numba on a CPU it knows, else PyTorch.

    Of a checkpoint Numba takes the arrays, and PyTorch is not even imported. `on_status` is given a sentence where
    something takes long or is not as wished. What cannot be had is a ConfigError.
    """
    require(name in ENGINES, "engine", name, f"one of {', '.join(ENGINES)}")
    require(quantization in QUANTIZATIONS, "quantization", quantization, "None or 'int8'")
    kind, missing = str(device_of(model)).partition(":")[0], why_not_numba()
    on_cpu = kind == "cpu"
    if name == "cuda" and kind != "cuda":
        reason = f"the model is on {kind!r}, not on a CUDA device"
        raise ConfigError(
            f"engine='cuda' cannot be used: {reason}; use device='cuda' on an NVIDIA GPU, else engine='auto'"
        )
    if name == "numba" and (missing or not on_cpu):
        reason = missing or "the model is not on the CPU"
        raise ConfigError(f"engine='numba' cannot be used: {reason}; use engine='torch'")
    if name == "numba" or (name == "auto" and on_cpu and not missing):
        from quill.engines.numba_engine import NumbaEngine

        arrays = model.weights if isinstance(model, Checkpoint) else arrays_of(model)
        return NumbaEngine(model.config, arrays, quantization=quantization, slots=slots, on_status=on_status)
    if quantization is not None:
        reason = missing or "the model is not on the CPU" if name == "auto" else f"the {name} engine does not have it"
        raise ConfigError(f"quantization={quantization!r} cannot be used: {reason}; leave quantization out")
    whole = model.model if isinstance(model, Checkpoint) else model
    if kind == "cuda" and name != "torch":
        from quill.engines.cuda_engine import CudaEngine

        return CudaEngine(whole, slots=slots, on_status=on_status)
    if name == "auto" and on_cpu and on_status:
        on_status(f"writing with PyTorch, which is slower: {missing}")
    from quill.engines.torch_engine import TorchEngine

    return TorchEngine(whole, slots=slots)


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """Return all weights of a model on the CPU by their names, float32."""
    return {name: weight.detach().float().numpy() for name, weight in model.named_parameters()}


def why_not_numba() -> str:
    """Return why Numba cannot be used on this machine, or an empty string."""
    if sys.implementation.name != "cpython" or platform.machine() not in PROCESSORS:
        return f"Numba does not support {sys.implementation.name} on {platform.machine()}"
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed (pip install numba)"
    return ""
