"""Send the events of a run wherever you like: a tracker is a callable that gets each event as a dictionary.

    python examples/own_tracker.py

docs/architecture.md lists the events and their fields. This tracker writes a CSV file of the validation loss and keeps
the largest gradient norm. `callback` gets each evaluation, and the text that it returns ends the run.
"""

import csv
from typing import Any

import quill


class CsvTracker:
    """Writes one line for each evaluation to a CSV file, and keeps the largest gradient norm."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self.writer = csv.writer(self.file)
        self.writer.writerow(["step", "seconds", "val_loss"])
        self.largest_norm = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "step":
                self.largest_norm = max(self.largest_norm, event["gradient_norm"])
            case "evaluation":
                self.writer.writerow([event["step"], round(event["seconds"], 2), event["val_loss"]])
            case "end":
                self.file.close()


if __name__ == "__main__":
    tracker = CsvTracker("losses.csv")
    low = lambda event: "low enough" if event["val_loss"] < 3.2 else None  # noqa: E731
    settings = {"config": "debug", "eval_interval": 20, "sample_tokens": 0, "overwrite": True}
    run = quill.run(**settings, out_dir="out-own-tracker", tracker=tracker, callback=low)
    print(f"{run.reason} after {run.step} steps; largest gradient norm {tracker.largest_norm:.2f}; see losses.csv")
