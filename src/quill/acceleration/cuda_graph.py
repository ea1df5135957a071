"""Warm-up, capture and replay of a function as a CUDA graph.

A graph contains the kernels of a function with the addresses of their tensors. Replaying it launches all of them with
one call, without Python. So the function must not read values back to the host, and whatever changes between replays
must be in tensors at fixed addresses.

Source: Ng et al. 2021, "Accelerating PyTorch with CUDA Graphs";
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class GraphCapture(Protocol):
    """Captures functions as graphs. Tests use one that needs no GPU."""

    device: torch.device

    def warm_up(self, run: Callable[[], T]) -> T:
        """Call the function on the capture stream: libraries choose kernels and allocate memory in the first call."""
        ...

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        """Return a function that replays this one and returns its tensors. Capturing itself computes nothing."""
        ...


class CudaGraphCapture:
    """Captures on a stream of its own, as CUDA requires.

    With `share_memory` all graphs share one memory pool. That is correct if a graph's results are not used after the
    next replay, except in tensors that existed before the capture. Other threads may then use CUDA during a capture.
    """

    def __init__(self, device: torch.device, share_memory: bool = False) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle() if share_memory else None
        self.error_mode = "thread_local" if share_memory else "global"

    def warm_up(self, run: Callable[[], T]) -> T:
        """Call the function on the stream of the captures."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = run()
        current.wait_stream(self.stream)
        return result

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        """Return a function that replays this one. If capturing raises, the generator's state is restored."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state(self.device)
        how = {"pool": self.pool, "stream": self.stream, "capture_error_mode": self.error_mode}
        try:
            # After a failure PyTorch does not restore the stream of the graph's context; the outer context does.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, **how):
                result = run()
        except Exception:
            # The generator may still be marked as captured: give it a fresh state.
            fresh = torch.Generator(self.device)
            fresh.set_state(before)
            generator = torch.cuda.default_generators[self.stream.device_index]
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise

        def replay() -> T:
            graph.replay()
            return result

        return replay
