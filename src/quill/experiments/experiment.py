"""What an experiment is, and what it returns.

An experiment has a claim, and settings of two sizes. Running it returns a Result: a finding with a verdict that is
computed from its effects, a control, and what would have shown the opposite.
"""

from __future__ import annotations

import dataclasses
import html
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.experiments.verdict import Effect, Verdict, joint_verdict
from quill.lab.finding import Finding, plain
from quill.units import format_duration, format_time_left

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OnProgress = Callable[[str, float], None]
"""Called as on_progress(what, share): what is done now, in words, and the completed share, from 0 to 1."""


def ignore(what: str, share: float) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Settings:
    """What every experiment can be told. Experiments extend it by their sizes."""

    seed: int = 1337
    """decides initial weights, batches, and every other random choice"""
    dataset: str = "shakespeare"
    """a named text, or the path of one"""
    data_dir: str = "data"
    """folder for prepared token files"""


@dataclass(frozen=True, repr=False)
class Result(Finding):
    """The result of an experiment. `numbers` without "timings" are the same for the same settings."""

    name: str
    title: str
    claim: str
    measure: str
    """what was measured, and how"""
    control: str
    """what was measured beside it, with figures, to exclude another explanation"""
    opposite: str
    """what would have shown the opposite, in one sentence"""
    effects: tuple[Effect, ...]
    """the differences that decide the verdict, all of them"""
    figures: Mapping[str, Any]
    """everything that was measured, apart from times, as JSON values or arrays"""
    settings: Settings
    draw: Callable[[Result], Figure]
    """makes the picture from this result alone"""
    controls: tuple[Effect, ...] = ()
    """differences that are shown, and do not decide"""
    timings: Mapping[str, Any] = field(default_factory=dict)
    """what depends on the machine"""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Supported, not here or unclear: computed from the effects."""
        return joint_verdict(self.effects)

    @property
    def seed(self) -> int:
        """The seed of every random choice."""
        return self.settings.seed

    @property
    def explanation(self) -> str:  # type: ignore[override]
        """Claim, measure, control and verdict in a paragraph."""
        return (
            f"Claim: {self.claim} Verdict: {self.verdict}. {self.measure} Control: {self.control} "
            f"The opposite would be: {self.opposite}"
        )

    def reproducible(self) -> dict[str, Any]:
        """Return the numbers that are the same for the same settings."""

        def rows(effects: tuple[Effect, ...]) -> list[dict[str, Any]]:
            return [{**dataclasses.asdict(each), "verdict": each.verdict} for each in effects]

        return plain(
            {
                "experiment": self.name,
                "claim": self.claim,
                "verdict": self.verdict,
                "effects": rows(self.effects),
                "controls": rows(self.controls),
                "measure": self.measure,
                "control": self.control,
                "opposite": self.opposite,
                "settings": dataclasses.asdict(self.settings),
                "seed": self.seed,
                "figures": dict(self.figures),
            }
        )

    def numbers(self) -> dict[str, Any]:
        """Return everything that was measured; what depends on the machine is under "timings"."""
        return self.reproducible() | {"timings": plain({**self.timings, "seconds": self.seconds})}

    def figure(self) -> Figure:
        """Return the picture."""
        return self.draw(self)

    def report(self) -> str:
        """Return the result as text for a terminal: verdict, effects with intervals, control."""
        lines = [f"claim      {self.claim}", f"verdict    {self.verdict}", f"measure    {self.measure}"]
        lines += [f"effect     {each}" for each in self.effects]
        lines.append(f"control    {self.control}")
        lines += [f"           {each}" for each in self.controls]
        lines += [f"opposite   {self.opposite}", f"time       {format_duration(self.seconds)}"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"{self.title}\n{self.report()}"

    def save(self, folder: str | Path, name: str = "result") -> list[Path]:
        """Write result.png, result.json and result.html into a folder, and return their paths."""
        return super().save(folder, name)

    def explained(self) -> str:
        """Return claim, verdict, effects and control as a table in HTML."""
        rows = [("Claim", self.claim), ("Verdict", self.verdict), ("Measure", self.measure)]
        rows += [("Effect", str(each)) for each in self.effects] + [("Control", self.control)]
        rows += [("", str(each)) for each in self.controls] + [("The opposite", self.opposite)]
        cells = "".join(f"<tr><th>{a}</th><td>{html.escape(b)}</td></tr>\n" for a, b in rows)
        return f'<table style="text-align: left; vertical-align: top">\n{cells}</table>'


@dataclass(frozen=True)
class Experiment:
    """A lesson that can be checked: a claim, settings of two sizes, and the function that checks it."""

    name: str
    claim: str
    run_with: Callable[[Any, OnProgress], Result]
    settings: Settings
    """the default size: at most ten minutes on two cores"""
    quick: Settings
    """at most one minute on two cores"""

    def run(self, settings: Settings | None = None, on_progress: OnProgress = ignore) -> Result:
        """Run the experiment with its default settings, or with these."""
        started = time.perf_counter()
        result = self.run_with(settings or self.settings, on_progress)
        return dataclasses.replace(result, seconds=time.perf_counter() - started)


class Progress:
    """Counts finished work of a known total, and reports its share with the time left."""

    EARLIEST = 0.02
    """Share from which on the time left is shown: the first steps of a model are slower than the others."""

    def __init__(self, on_progress: OnProgress, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, 0.0
        self._report, self._clock, self._started = on_progress, clock, clock()

    def __call__(self, what: str, amount: float = 1.0) -> None:
        """Report that `amount` more of the total is done, and what is being worked on."""
        self.done += amount
        share = min(1.0, self.done / self.total)
        left = ""
        if self.EARLIEST <= share < 1:
            left = f", {format_time_left((self._clock() - self._started) * (1 - share) / share)}"
        self._report(f"{what}{left}", share)
