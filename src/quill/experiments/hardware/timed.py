"""The result of an experiment whose effects are speeds: they differ from run to run, so they count as timings."""

from __future__ import annotations

from typing import Any

from quill.experiments.experiment import Result

OF_TIMES = ("verdict", "effects", "controls", "control")


class TimedResult(Result):
    """A result whose effects depend on the machine; `reproducible` is what the settings alone decide."""

    def reproducible(self) -> dict[str, Any]:
        """Return the numbers that are the same for the same settings: those that were counted, not timed."""
        return {name: value for name, value in super().reproducible().items() if name not in OF_TIMES}

    def numbers(self) -> dict[str, Any]:
        """Return everything that was measured; all that depends on the machine is under "timings"."""
        everything = super().reproducible()
        numbers = super().numbers()
        return numbers | {"timings": numbers["timings"] | {name: everything[name] for name in OF_TIMES}}
