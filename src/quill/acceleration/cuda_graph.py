"""Warm-up, capture and replay of a function as a CUDA graph.

A graph holds the kernels of a function with the addresses of their tensors. Replaying it launches all of them with one
call, and without Python. So the function must not read values back to the host, and all that changes between replays
lies in tensors that stay at their addresses.

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
        """Call the function where it will be captured: libraries choose kernels and allocate memory the first time."""
        ...

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        """Return a function that replays this one and returns the same tensors. Capturing computes nothing."""
        ...


class CudaGraphCapture:
    """Captures on a stream of its own, as CUDA demands.

    With `share_memory` all graphs use one pool of memory. This is right where nothing that a graph computed is needed
    after the next one is replayed, except in tensors that existed before. Then other threads may use CUDA during a
    capture.
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
        """Return a function that replays this one. If it raises, the generator's state is as it was before."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state(self.device)
        how = {"pool": self.pool, "stream": self.stream, "capture_error_mode": self.error_mode}
        try:
            # The outer stream is left even where PyTorch, after a failure, does not leave the inner one.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, **how):
                result = run()
        except Exception:
            # The generator may still count as being captured: give it a state that is not.
            fresh = torch.Generator(self.device)
            fresh.set_state(before)
            generator = torch.cuda.default_generators[self.stream.device_index]
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise

        def replay() -> T:
            graph.replay()
            return result

        return replay
