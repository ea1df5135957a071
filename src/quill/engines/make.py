"""Make the engine of a given name, or the fastest one that computes this model.

`torch_engine.py` is the reference and runs anywhere, `numba_engine.py` is fast on CPUs, `cuda_engine.py` on NVIDIA
GPUs. They differ in speed, not in the tokens that they generate for a seed.
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
from quill.engines.agreement import difference, must_compare, unknown_weight
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

OnStatus = Callable[[str], None] | None


class _UnavailableError(Exception):
    """An engine cannot be used for a model; the message says why."""


def make_engine(
    model: Model | Checkpoint,
    name: str = "auto",
    *,
    quantization: str | None = None,
    slots: int = 1,
    on_status: OnStatus = None,
) -> Engine:
    """Return an engine for a model by its name; "auto" is cuda on such a GPU, numba on a CPU it supports, else torch.

    For a checkpoint, the Numba engine uses its arrays without importing PyTorch. A fast engine that does not compute
    this model, because its source or the object was edited, is not used. `on_status` is called with a sentence when
    something takes long or "auto" falls back to PyTorch. A named engine that is not available is a ConfigError.
    """
    require(name in ENGINES, "engine", name, f"one of {', '.join(ENGINES)}")
    require(quantization in QUANTIZATIONS, "quantization", quantization, "None or 'int8'")
    kind = str(device_of(model)).partition(":")[0]
    wanted = {"cpu": "numba", "cuda": "cuda"}.get(kind, "torch") if name == "auto" else name
    try:
        if wanted == "numba":
            return _numba_engine(model, kind, quantization, slots, on_status)
        if quantization is not None:
            raise _UnavailableError(f"the {wanted} engine does not support it")
        if wanted == "cuda":
            return _cuda_engine(model, kind, slots, on_status)
    except _UnavailableError as error:
        if quantization is not None and name != "numba":
            message = f"quantization={quantization!r} cannot be used: {error}; leave quantization out"
            raise ConfigError(message) from None
        if name != "auto":
            on_gpu = "device='cuda' on an NVIDIA GPU, else engine='auto'"
            advice = on_gpu if name == "cuda" and kind != "cuda" else "engine='torch'"
            raise ConfigError(f"engine={name!r} cannot be used: {error}; use {advice}") from None
        if on_status:
            on_status(f"generating with PyTorch, which is slower: {error}")
    from quill.engines.torch_engine import TorchEngine

    return TorchEngine(_torch_model(model), slots=slots)


def _numba_engine(
    model: Model | Checkpoint, kind: str, quantization: str | None, slots: int, on_status: OnStatus
) -> Engine:
    if kind != "cpu":
        raise _UnavailableError("the model is not on the CPU")
    if missing := why_not_numba():
        raise _UnavailableError(missing)
    arrays = model.weights if isinstance(model, Checkpoint) else arrays_of(model)
    if unknown := unknown_weight(model.config, arrays):
        raise _UnavailableError(f"the model was edited, {unknown}")
    from quill.engines.numba_engine import NumbaEngine

    if must_compare(model):
        # Always in float32: rounding to int8 could hide a difference.
        exact = NumbaEngine(model.config, arrays, on_status=on_status)
        if reason := difference(_torch_model(model), exact.logits):
            raise _UnavailableError(reason)
    return NumbaEngine(model.config, arrays, quantization=quantization, slots=slots, on_status=on_status)


def _cuda_engine(model: Model | Checkpoint, kind: str, slots: int, on_status: OnStatus) -> Engine:
    if kind != "cuda":
        raise _UnavailableError(f"the model is on {kind!r}, not on a CUDA device")
    from quill.engines.cuda_engine import CudaEngine
    from quill.engines.static_model import OtherModelError

    try:
        engine = CudaEngine(_torch_model(model), slots=slots, on_status=on_status)
    except (OtherModelError, AttributeError) as error:
        raise _UnavailableError(f"the model was edited, {error}") from None
    if reason := difference(engine.model, engine.static_logits):
        raise _UnavailableError(reason)
    return engine


def device_of(model: Model | Checkpoint) -> torch.device | str:
    """Return the device on which a model is, or will be."""
    return model.device if isinstance(model, Checkpoint) else model.token_embedding.weight.device


def how_many_slots(config: ModelConfig, device: torch.device | str, at_most: int = 32) -> int:
    """Return how many sequences may have a cache at once: as many as fit into a quarter of the free memory."""
    one = 2 * 4 * config.n_layer * config.kv_heads * (config.n_embd // config.n_head) * config.block_size
    return max(1, min(at_most, available_memory(device) // 4 // one))


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


def _torch_model(model: Model | Checkpoint) -> Model:
    return model.model if isinstance(model, Checkpoint) else model
