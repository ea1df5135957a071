"""Warm-up, capture and replay of a function as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor]

Run = Callable[[], Result]


class Recorder(Protocol):
    """What can take a step aside and record it."""

    device: torch.device

    def rehearse(self, run: Run) -> Result:
        """Take the step where it will be recorded."""
        ...

    def record(self, run: Run) -> Run:
        """Return what takes the step again and again. Recording itself moves nothing."""
        ...


class CudaRecorder:
    """Records on a stream of its own, as CUDA demands."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def rehearse(self, run: Run) -> Result:
        """Take the step on the stream that will be recorded."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = run()
        current.wait_stream(self.stream)
        return result

    def record(self, run: Run) -> Run:
        """Return what replays the step. If it raises, random numbers are as they were before."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state(self.device)
        try:
            # The outer stream is left even where PyTorch, after a failure, does not leave the inner one.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
                result = run()
        except Exception:
            # The generator may believe that it is still being recorded: give it a state that was not.
            fresh = torch.Generator(self.device)
            fresh.set_state(before)
            generator = torch.cuda.default_generators[self.stream.device_index]
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise

        def replay() -> Result:
            graph.replay()
            return result

        return replay
