"""quill.run: a complete training run with its folder. `quill train` calls it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quill.checkpoints.lock import LOCK, lock_run
from quill.checkpoints.manifest import step_of
from quill.checkpoints.run_folder import clean_run_folder, find_checkpoint, require_folder, return_to_best
from quill.distributed.environment import next_divisible, read_ranks, require_divisible
from quill.distributed.group import ALONE, Group
from quill.distributed.joining import joined
from quill.errors import ConfigError
from quill.files import expand_home
from quill.process import keep_freed_memory, spin_briefly
from quill.runs.init_from import with_shape
from quill.runs.observers import Observers, Tracker
from quill.runs.presets import read_settings
from quill.runs.replacing import bring_back
from quill.runs.resume import continues_after_restart, refuse_existing_run, refuse_foreign_files, resumed_settings
from quill.runs.session import open_text, tell_others, train_along, train_with
from quill.runs.settings import RunSettings, Settings, check_settings, resolve_settings
from quill.training.events import TrainResult
from quill.validation import plain_number, require

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.generation.language_model import LanguageModel
    from quill.training.events import Event

LATE = 1.1  # times the minutes, after which an unfinished run is stopped


@dataclass(frozen=True)
class Run(TrainResult):
    """A training run that has ended. `reason` may also be what `callback` returned."""

    out_dir: Path
    settings: Settings = field(repr=False)
    """every setting of the run, by name"""

    def load(self, checkpoint: Literal["best", "last"] = "best", **options: Any) -> LanguageModel:
        """Return the trained model, as `quill.load(run.out_dir)` does."""
        from quill.generation.language_model import load

        return load(self.out_dir, checkpoint=checkpoint, **options)


def run(
    *,
    config: str | Path | None = None,
    minutes: float | None = None,
    resume: bool | Literal["best"] = False,
    overwrite: bool = False,
    text: str | None = None,
    progress: bool | Tracker = True,
    tracker: Tracker | Iterable[Tracker] | None = None,
    callback: Callable[[Event], str | None] | None = None,
    **settings: Any,
) -> Run:
    """Train a GPT as `quill train` does, with the same files, and return how the run ended.

        quill.run(dataset="my.txt", minutes=5, out_dir="out")
        quill.run(config="laptop", max_iters=500, callback=lambda event: "low" if event["val_loss"] < 1.8 else None)

    `settings` are the fields of GPTConfig or ModernConfig, TrainConfig and RunSettings, by name. `config` is a preset,
    a YAML file or a run's folder, under them. `minutes` picks what is not given for this text, machine and time. `text`
    is the training text itself, instead of `dataset`. `resume` continues the run in out_dir from its last
    checkpoint ("best": from its best one); `overwrite` replaces it.

    `progress` shows the run in the terminal or notebook (True), or is called with every event instead. Each `tracker`
    is called with every event (docs/architecture.md lists them). `callback` is called with every `evaluation` event; a
    text that it returns ends the run, with this reason. Ctrl-C saves and ends the run (reason "interrupted").

    Settings that cannot be used are a ConfigError, a text that cannot be used is a CorpusError, and a loss that is not
    finite or memory that runs out is a TrainingError; all of them are a QuillError. As in `quill train`, two settings
    of the whole process change: glibc's allocator keeps freed memory, and, if PyTorch is imported later, its threads
    spin only briefly (GOMP_SPINCOUNT).

    Under torchrun the processes train together: they share each batch, and rank 0 writes the files.
    """
    spin_briefly()
    flags = {"config": config, "minutes": minutes, "resume": resume, "overwrite": overwrite, **settings}
    with joined(read_ranks(), {name: repr(value) for name, value in flags.items()}) as group:
        if not group.first:
            return ended(*train_along(group, text))
        return lead(
            group,
            settings,
            config=config,
            minutes=minutes,
            resume=resume,
            overwrite=overwrite,
            text=text,
            observers=Observers(progress, tracker, callback),
        )


def lead(
    group: Group,
    settings: Settings,
    *,
    config: str | Path | None,
    minutes: float | None,
    resume: bool | Literal["best"],
    overwrite: bool,
    text: str | None,
    observers: Observers,
) -> Run:
    """Run `quill.run` in the process that decides: rank 0, or the only one."""
    if resume and overwrite:
        raise ConfigError("resume=True continues a run and overwrite=True starts over: use one of them")
    if minutes is not None and resume:
        raise ConfigError("minutes chooses a new run: leave it out to resume one (resume=True)")
    require(resume in (True, False, "best"), "resume", resume, "True, False or 'best'")
    require(overwrite in (True, False), "overwrite", overwrite, "True or False")
    require(config is None or isinstance(config, str | Path), "config", config, "a preset's name, or a path")
    file, source = read_settings(str(config)) if config is not None else ({}, "")
    file = {name: expand_user(name, value) for name, value in file.items()}
    settings = check_settings({name: expand_user(name, value) for name, value in settings.items()})
    out_dir = Path(settings.get("out_dir", file.get("out_dir", RunSettings.out_dir)))
    if continues_after_restart(out_dir):
        observers.status(f"torchrun has restarted the run: it continues from the last checkpoint in {out_dir}")
        resume, overwrite, minutes = True, False, None
    bring_back(out_dir)
    if minutes is not None:
        number = plain_number(minutes)
        possible = type(number) in (int, float) and 0 < number < float("inf")
        require(possible, "minutes", minutes, "a number above 0")
        return run_for_minutes(number, file | settings, observers, overwrite=overwrite, text=text, group=group)
    if resume:
        given = file | settings
        chosen = resumed_settings(out_dir, given)
        with lock_run(chosen["out_dir"]):
            clean_run_folder(chosen["out_dir"])
        if resume is True and "dataset" not in given and (done := finished_run(chosen)) is not None:
            observers.status(
                f"nothing left to do: the run in {done.out_dir} has finished its {done.step} steps "
                f"(for more steps: quill train --resume=True --out_dir={done.out_dir} --max_iters={2 * done.step})"
            )
            tell_others(group, chosen, result=done)
            return done
    else:
        chosen = resolve_settings(with_shape(settings), file, source=source)
        require_free_folder(chosen, chosen, overwrite)
    require_divisible(chosen["batch_size"], group.ranks.world_size)
    keep_freed_memory()
    named = "dataset" in settings
    dataset = open_text(chosen, text, observers, resume=bool(resume), named=named)
    if text is not None:
        chosen = chosen | {"dataset": dataset.name}  # the folder of its prepared tokens
    dataset.require_window(int(chosen["block_size"]))
    if resume == "best":
        with lock_run(chosen["out_dir"]):
            return_to_best(chosen["out_dir"])
    result = train_with(chosen, dataset, observers, resume=bool(resume), replace=overwrite, group=group)
    return ended(chosen, result)


def run_for_minutes(
    minutes: float,
    given: Settings,
    observers: Observers,
    *,
    overwrite: bool = False,
    text: str | None = None,
    dataset: AnyDataset | None = None,
    late: float = LATE,
    mark: str = "",
    group: Group = ALONE,
) -> Run:
    """Train for a number of minutes, with a recipe chosen for this text, machine and time; return how the run ended.

    Given settings override the recipe. `dataset`, if given, is used instead of preparing a text. The run is stopped
    after `late` times the minutes. `mark` is a comment that begins config.yaml.
    """
    from quill.runs.time_budget import TimeBudget, describe_choice, fit_to_minutes

    if not {"architecture", "optimizer"} & given.keys():
        given = given | {"architecture": "modern"}
    given = with_shape(given)
    asked = resolve_settings(given)
    require_free_folder(asked, given, overwrite)
    given = {"film": True} | given
    keep_freed_memory()
    started, seconds = time.monotonic(), minutes * 60
    if dataset is None:
        dataset = open_text(asked, text, observers)
        given = given if text is None else given | {"dataset": dataset.name}
    dataset.require_window(given.get("block_size", 1))  # before the machine is measured, which takes seconds
    observers.status("measuring the speed of this machine")
    settings, speed = fit_to_minutes(dataset, minutes, given)
    if "batch_size" not in given:
        settings["batch_size"] = next_divisible(settings["batch_size"], group.ranks.world_size)
    require_divisible(settings["batch_size"], group.ranks.world_size)
    observers.status(describe_choice(settings, minutes))
    budget = TimeBudget(
        started,
        seconds,
        steps=settings["max_iters"],
        eval_interval=settings["eval_interval"],
        evaluation=speed.evaluation,
        on_slower=observers.warn,
    )
    # A last evaluation follows the last step, and its time counts as well.
    deadline = started + late * seconds - (min(seconds / 2, speed.evaluation) if late <= 1 else 0)
    result = train_with(
        settings,
        dataset,
        observers,
        replace=overwrite,
        deadline=deadline,
        plan=None if "max_iters" in given else budget,
        mark=mark,
        group=group,
    )
    return ended(settings, result)


def require_free_folder(settings: Settings, given: Mapping[str, Any], overwrite: bool) -> None:
    """Raise ConfigError if out_dir cannot be a folder, is in use, or holds a run that may not be replaced."""
    out_dir = Path(settings["out_dir"])
    require_folder(out_dir)
    if os.path.lexists(out_dir / LOCK):  # refuse it before a long text is prepared
        with lock_run(out_dir):
            pass
    refuse_foreign_files(out_dir)
    if not overwrite:
        refuse_existing_run(out_dir, given)


def finished_run(settings: Settings) -> Run | None:
    """Return the run in out_dir if it has taken all its steps and its end was recorded, else None."""
    from quill.tracking.jsonl import read_events

    out_dir = Path(settings["out_dir"])
    history = read_events(out_dir / "metrics.jsonl")
    ends = [event for event in history if event["event"] == "end"]
    checkpoint = find_checkpoint(out_dir, "last")
    step = step_of(checkpoint)
    if not ends or step is None or step < settings["max_iters"] or ends[-1]["step"] != step:
        return None
    end = ends[-1]
    val_loss = next((event["val_loss"] for event in reversed(history) if event["event"] == "evaluation"), None)
    result = TrainResult(end["reason"], step, val_loss, end["best_val_loss"], end["best_step"], checkpoint)
    return ended(settings, result)


def ended(settings: Settings, result: TrainResult) -> Run:
    """Return the run that ended with this result."""
    return Run(**vars(result), out_dir=Path(settings["out_dir"]), settings=settings)


def expand_user(name: str, value: Any) -> Any:
    """Return a path with a leading ~ replaced by the home folder, and other settings as they are."""
    if name in ("out_dir", "data_dir", "init_from") and isinstance(value, str | Path):
        return str(expand_home(value))
    return str(value) if isinstance(value, Path) else value
