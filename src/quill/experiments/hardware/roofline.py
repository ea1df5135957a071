"""Is the work limited by arithmetic or by memory? A roofline of this machine, with the work of a GPT on it.

Williams et al. 2009, "Roofline: An Insightful Visual Performance Model". A processor that reads one byte can do only so
many operations meanwhile. Work with fewer operations a byte waits for memory, work with more for arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quill.experiments.experiment import Experiment, OnProgress, Result, Settings
from quill.experiments.hardware import roofline_points as points
from quill.experiments.hardware.clock import Load
from quill.experiments.hardware.roofline_points import Point, Roof, knees_R
from quill.experiments.hardware.timed import TimedResult
from quill.experiments.verdict import Effect, effect
from quill.lab.statistics import bootstrap_interval
from quill.model.config import GPTConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Reading a prompt and training are limited by arithmetic, generating one text by memory, and two measured speeds "
    "predict the batch size between the two."
)
HALF = 0.5
"""Of the arithmetic roof: work that reaches it is called limited by arithmetic."""


@dataclass(frozen=True)
class RooflineSettings(Settings):
    """Sizes of the roofline experiment. The default is the model of the full-size recipe."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    block_size: int = 256
    batches: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    rounds: int = 12
    """how often everything is measured, in turn"""
    training_windows: int = 4


def run(settings: RooflineSettings, on_progress: OnProgress) -> Result:
    """Measure the roofs and the work in turn, and compare them round by round."""
    config = GPTConfig(
        vocab_size=65, block_size=settings.block_size, n_layer=settings.n_layer, n_head=settings.n_head,
        n_embd=settings.n_embd, dropout=0.0,
    )  # fmt: skip
    load = Load(torch.get_num_threads())
    roofs, found = points.measure(
        points.Settings(config, settings.batches, settings.rounds, settings.training_windows, settings.seed),
        lambda number, count: on_progress(f"round {number} of {count}", number / (count + 1)),
    )
    processor_share = load.processor_seconds / max(load.seconds * load.threads, 1e-9)
    return result_of(settings, roofs, found, processor_share)


def result_of(settings: RooflineSettings, roofs: dict[str, Roof], found: list[Point], processor_share: float) -> Result:
    """Return the result of these measurements."""

    def share_R(name: str, dtype: str, rows: int | None = None) -> np.ndarray:
        point = next(p for p in found if p.name == name and p.dtype == dtype and rows in (None, p.rows))
        return point.speed_R / roofs[dtype].peak_R

    def reaches(what: str, name: str, dtype: str, sign: int, rows: int | None = None) -> Effect:
        side = "above" if sign > 0 else "below"
        gains_R = sign * (share_R(name, dtype, rows) - HALF)
        return effect(f"{what}: share of the arithmetic roof {side} one half", gains_R, 0.0, "of the roof")

    knees = []
    for dtype, roof in roofs.items():
        ratio_R = np.abs(np.log2(np.maximum(knees_R(found, dtype), 1e-3) / roof.knee(dtype)))
        knees.append(effect(f"knee of {dtype}: within a factor of 2 of the predicted one", 1 - ratio_R, 0.0, "octaves"))
    attention = share_R("attention", "float32")
    share = bootstrap_interval(attention) if len(attention) > 1 else attention.mean()
    batch = next(p.rows for p in found if p.name == "attention")
    return TimedResult(
        name="roofline",
        title="What limits a GPT on this machine: memory or arithmetic",
        claim=CLAIM,
        measure=(
            "The roofs are a product of large matrices (or the engine's kernel on cached weights, if faster) and the"
            " speed of reading as many bytes as the weights have. Each figure is the fastest of several repeats; shares"
            " compare figures of the same round, and knees the best roofs of all rounds. Traffic is counted as the"
            " least that is possible."
        ),
        control=(
            f"Attention reads keys of its own for each text, so a batch cannot help it: with {batch} texts it reaches"
            f" {share} of the arithmetic roof. This process got {processor_share:.0%} of the processor; on a busy"
            " machine longer measurements look slower than short ones, the roofs among them."
        ),
        opposite="Generating one text would reach half of the arithmetic roof, or a training step would not.",
        effects=(
            reaches("generating one text", "linear", "float32", -1, min(settings.batches)),
            reaches("reading a prompt", "prompt", "float32", 1),
            reaches("training step", "training", "float32", 1),
            *knees,
        ),
        controls=(reaches(f"attention of {batch} texts", "attention", "float32", -1),),
        figures={
            "work": [
                {"name": p.name, "dtype": p.dtype, "rows": p.rows, "operations": p.work.operations,
                 "bytes": p.work.bytes, "intensity": p.work.intensity}
                for p in found
            ]
        },
        settings=settings,
        draw=draw,
        timings=timings_of(roofs, found) | {"processor_share": processor_share},
    )  # fmt: skip


def timings_of(roofs: dict[str, Roof], found: list[Point]) -> dict[str, Any]:
    """Return all measured speeds."""
    return {
        "threads": torch.get_num_threads(),
        "roofs": {
            dtype: {
                "peak_R": roof.peak_R,
                "bandwidth_R": roof.bandwidth_R,
                "knee_predicted": roof.knee(dtype),
                "knee_measured_R": knees_R(found, dtype),
            }
            for dtype, roof in roofs.items()
        },
        "points": [
            {"name": p.name, "dtype": p.dtype, "rows": p.rows, "seconds_R": p.seconds_R,
             "share_of_roof": float(np.median(p.speed_R / roofs[p.dtype].peak_R)),
             "seconds_predicted": p.work.seconds(roofs[p.dtype].peak, roofs[p.dtype].bandwidth)}
            for p in found
        ],
    }  # fmt: skip


def draw(result: Result) -> Figure:
    """Return the picture of a result."""
    from quill.experiments.hardware.roofline_figure import draw_roofline
    from quill.experiments.hardware.work import Work

    timings = result.timings
    roofs = {name: Roof(np.array(r["peak_R"]), np.array(r["bandwidth_R"])) for name, r in timings["roofs"].items()}
    found = [
        Point(w["name"], w["dtype"], w["rows"], Work(w["operations"], w["bytes"]), np.array(t["seconds_R"]))
        for w, t in zip(result.figures["work"], timings["points"], strict=True)
    ]
    return draw_roofline(roofs, found)


EXPERIMENT = Experiment(
    "roofline",
    CLAIM,
    run,
    RooflineSettings(),
    RooflineSettings(n_layer=4, n_head=4, n_embd=256, batches=(1, 2, 4, 8, 16, 32), rounds=4, training_windows=2),
)
