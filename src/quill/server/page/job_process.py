"""The process of a job: one line of JSON in, one line for each step of progress out.

It ends when its standard input is closed, so it does not outlive the server.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.errors import QuillError, first_line

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.lab.subject import Subject

WINDOWS = 32
SECONDS_BETWEEN_LINES = 0.1

OnProgress = Callable[[str, float], None]


def main() -> int:
    """Do the job that the first line of standard input names."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not progress
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    last = 0.0

    def tell(**changes: Any) -> None:
        out.write(json.dumps(changes) + "\n")
        out.flush()

    def on_progress(what: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            tell(what=what, share=min(1.0, max(0.0, share)))

    try:
        JOBS[task["job"]](task, on_progress)
    except (QuillError, OSError) as error:
        tell(state="failed", what=first_line(error, 800))
        return 2
    tell(state="done", what="done", share=1.0)
    return 0


def end_with_input() -> None:
    """End this process when the one that started it closes its standard input, or ends."""
    sys.stdin.read()
    os._exit(1)


def measure_heads(task: dict[str, Any], on_progress: OnProgress) -> None:
    """Write role and cost of each head into a file."""
    import numpy as np

    from quill.files import write_atomically
    from quill.lab.ablation.cost import ablate_each, text_windows
    from quill.lab.ablation.targets import every_head
    from quill.lab.finding import dump, plain
    from quill.lab.roles.classify import head_roles

    subject, dataset = opened(task, on_progress)
    config = subject.model.config
    windows_NT = text_windows(subject, np.asarray(dataset.val), WINDOWS)
    costs = ablate_each(
        subject, windows_NT, every_head(config),
        on_progress=lambda share: on_progress("measuring the loss without each head", share),
    )  # fmt: skip
    on_progress("finding the role of each head", 1.0)
    found = head_roles(subject, windows_NT, costs=costs)
    intervals_P = iter(costs.costs)
    costs_LH = [[next(intervals_P) for _ in range(config.n_head)] for _ in range(config.n_layer)]
    write_atomically(Path(task["file"]), dump(plain({**found.numbers(), "costs": costs_LH})))


def train_lens(task: dict[str, Any], on_progress: OnProgress) -> None:
    """Train a tuned lens, and write it into the folder of the run."""
    from quill.lab.tuned_lens import NAME, find_tuned_lens

    subject, dataset = opened(task, on_progress)
    find_tuned_lens(
        Path(task["run"]) / NAME, subject, lambda: dataset.train,
        on_progress=lambda share: on_progress("training the tuned lens", share),
    )  # fmt: skip


def run_experiment(task: dict[str, Any], on_progress: OnProgress) -> None:
    """Run an experiment on the text of the run, and save its result where `quill experiment` saves it."""
    from quill.experiments.catalog import load_experiment
    from quill.process import keep_freed_memory
    from quill.server.page.learn import FOLDER

    keep_freed_memory()
    experiment = load_experiment(task["experiment"])
    given: dict[str, Any] = {}
    text = text_named_by(Path(task["run"]))
    if text is not None:
        given["dataset"], given["data_dir"] = text
    if task["own_model"] and hasattr(experiment.settings, "run"):
        given["run"] = task["run"]
    settings = dataclasses.replace(experiment.quick if task["quick"] else experiment.settings, **given)
    experiment.run(settings, on_progress).save(FOLDER / task["experiment"])


def text_named_by(run: Path) -> tuple[str, str] | None:
    """Return the text of a run and the folder of its prepared tokens, if its config.yaml names a single text."""
    from quill.data.mixture import find_mixture
    from quill.data.sources import NAMES
    from quill.runs.resume import stored_settings

    settings = stored_settings(run)
    if settings is None or not isinstance(settings["dataset"], str) or find_mixture(settings["dataset"]):
        return None
    name, data_dir = settings["dataset"], settings["data_dir"]
    if name in NAMES or Path(name).exists() or not (run.parent / name).exists():
        return name, data_dir
    return str(run.parent / name), str(run.parent / data_dir)


def opened(task: dict[str, Any], on_progress: OnProgress) -> tuple[Subject, AnyDataset]:
    """Return a model and the text that it was trained on."""
    from quill.checkpoints.run_folder import load_checkpoint
    from quill.lab.subject import ModelAndTokenizer
    from quill.runs.run_text import text_of_run

    checkpoint = load_checkpoint(task["checkpoint"])
    dataset = text_of_run(Path(task["run"]), checkpoint, None, on_progress)
    return ModelAndTokenizer(checkpoint.model, checkpoint.tokenizer), dataset


JOBS = {"heads": measure_heads, "tuned-lens": train_lens, "experiment": run_experiment}

if __name__ == "__main__":
    sys.exit(main())
