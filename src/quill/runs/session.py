"""The main part of a run: open the text, then train with all files that a run writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quill.checkpoints.config_file import write_config
from quill.checkpoints.index import metrics_are_whole
from quill.checkpoints.lock import lock_run
from quill.checkpoints.run_folder import clean_run_folder
from quill.distributed.group import ALONE, Group
from quill.errors import ConfigError
from quill.generation.sample import sample_function
from quill.process import keep_freed_memory
from quill.runs.filming import film_watch
from quill.runs.init_from import initializer
from quill.runs.observers import Observers
from quill.runs.replacing import replacing_run
from quill.runs.settings import RunSettings, Settings, build_configs
from quill.training.events import TrainResult

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.training.context import RunContext
    from quill.training.events import Event


def open_text(
    settings: Settings, text: str | None, observers: Observers, *, resume: bool = False, named: bool = True
) -> AnyDataset:
    """Return the dataset to train on; prepare it if it is not on disk.

    The text of a resumed run is searched for in several folders, unless the caller `named` it. A missing device is
    reported first, because preparing a long text takes a while.
    """
    from quill.data.dataset import prepare_dataset
    from quill.data.mixed_dataset import prepare_any
    from quill.runs.init_from import tokenizer_for
    from quill.runs.run_text import open_run_text, text_sha256_of

    run = build_configs(settings)[2]
    out_dir = resolve(run).out_dir
    tokenizer = tokenizer_for(settings, text, resume)
    if text is not None:
        return prepare_dataset(text=text, tokenizer=tokenizer, data_dir=run.data_dir, on_progress=observers.preparing)
    if resume and not named:
        sha256 = text_sha256_of(out_dir)
        return open_run_text(out_dir, run.dataset, tokenizer, run.data_dir, sha256, observers.preparing)
    return prepare_any(run.dataset, tokenizer=tokenizer, data_dir=run.data_dir, on_progress=observers.preparing)


def resolve(run: RunSettings, group: Group = ALONE) -> RunContext:
    """Return the context of a run, in which device, number format and folder are resolved."""
    from quill.training.context import resolve_context

    return resolve_context(
        run.out_dir,
        device=run.device,
        dtype=run.dtype,
        compile=run.compile,
        gradient_checkpointing=run.gradient_checkpointing,
        log_interval=run.log_interval,
        group=group,
        parallel=run.parallel,
    )


def train_with(
    settings: Settings,
    dataset: AnyDataset,
    observers: Observers,
    *,
    resume: bool = False,
    replace: bool = False,
    deadline: float | None = None,
    plan: Callable[[int], int] | None = None,
    mark: str = "",
    group: Group = ALONE,
) -> TrainResult:
    """Train, and write the files of a run: config.yaml, metrics, samples, the plot, checkpoints.

    With `replace` an earlier run in the folder is deleted once the new one has a checkpoint. At `deadline` (in the time
    of time.monotonic) the run is stopped. `plan` is that of `train()`. `mark` is a comment that begins config.yaml. If
    another process trains in the folder, that is a ConfigError. The other processes of `group` are in `train_along`.
    """
    from quill.planning.limits import check_size, warn_of_long_run, warn_of_long_warmup
    from quill.planning.out_of_memory import explaining_out_of_memory, foresee_out_of_memory
    from quill.planning.planned_run import PlannedRun
    from quill.tracking.tensorboard import TensorBoard
    from quill.training.loop import train

    model_config, config, run = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    context = resolve(run, group)
    planned = PlannedRun(model_config, config, context)
    check_size(planned)
    out_dir = context.out_dir
    tensorboard = TensorBoard(out_dir / "tensorboard") if run.tensorboard else None
    initialize = initializer(settings, dataset.tokenizer, observers.warn) if not resume else None

    def stop() -> str | None:
        late = deadline is not None and time.monotonic() > deadline
        return observers.reason or ("time" if late else None)

    with lock_run(out_dir), replacing_run(out_dir, replace):
        clean_run_folder(out_dir)
        tell_others(group, settings, resume, plan is not None, dataset)
        plan_together = None if plan is None else lambda step: group.share(plan(step))
        if resume and not metrics_are_whole(out_dir):
            observers.warn("metrics.jsonl was changed or cut since the last save: its curves may be wrong")
        with observers.trackers(out_dir, resume, tensorboard) as trackers:
            configure = lambda steps: write_config(out_dir, settings | {"max_iters": steps}, mark)  # noqa: E731
            report = Reporter(trackers, configure, dataset.note, deadline)
            observers.attach(report)
            cautions = [warn_of_long_run(planned) if plan is None else None, warn_of_long_warmup(config)]
            cautions += [foresee_out_of_memory(planned) if context.device.type == "cpu" else None]
            for message in filter(None, cautions):
                observers.warn(message)
            with explaining_out_of_memory(planned):
                return train(
                    model_config,
                    config,
                    context,
                    dataset,
                    report=report,
                    sample=sample_function(dataset, run.sample_tokens, config.seed),
                    initialize=initialize,
                    resume=resume,
                    stop=stop,
                    plan=plan_together,
                    watch=film_watch(out_dir, model_config, dataset, config.seed, resume, observers.warn)
                    if run.film
                    else None,
                )


def tell_others(
    group: Group,
    settings: Settings,
    resume: bool = False,
    planned: bool = False,
    dataset: AnyDataset | None = None,
    result: TrainResult | None = None,
) -> None:
    """Tell the processes in `train_along` what to train and whether steps are replanned, or how the run has ended."""
    if group.alone:
        return
    ended = None if result is None else vars(result) | {"checkpoint": str(result.checkpoint)}
    names = {f.name for f in dataclasses.fields(TrainResult)}
    group.share(
        {
            "settings": settings,
            "resume": resume,
            "planned": planned,
            "identity": dataset and identity(dataset),
            "ended": ended and {name: value for name, value in ended.items() if name in names},
        }
    )


def identity(dataset: AnyDataset) -> dict[str, str]:
    """Return the SHA-256 of a dataset's text and of its tokenizer."""
    tokenizer = json.dumps(dataset.tokenizer.to_json(), sort_keys=True)
    return {"text": dataset.sha256, "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()}


def train_along(group: Group, text: str | None) -> tuple[Settings, TrainResult]:
    """Train in a process that is not rank 0: it gets its settings from rank 0, and writes no files.

    A text or tokenizer other than that of rank 0 is a ConfigError.
    """
    from quill.training.loop import train

    told = group.share(None)
    settings, resume = told["settings"], told["resume"]
    if told["ended"] is not None:
        return settings, TrainResult(**told["ended"])
    keep_freed_memory()
    dataset = open_text(settings, text, Observers(progress=False), resume=resume, named=not resume)
    for what, here in identity(dataset).items():
        if here != (there := told["identity"][what]):
            raise ConfigError(
                f"rank {group.ranks.rank} ({socket.gethostname()}) has another {what} than rank 0 (SHA-256 "
                f"{here[:12]}…, rank 0: {there[:12]}…): give all machines the same files"
            )
    model_config, config, run = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    context = resolve(run, group)
    plan = (lambda step: group.share(None)) if told["planned"] else None
    return settings, train(model_config, config, context, dataset, resume=resume, plan=plan)


class Reporter:
    """Passes events to a tracker from the `start` event on, so that a run which fails earlier writes no file.

    Earlier events, such as a warning about compiling, are passed after it. `configure` is called with the number of
    steps of the run, at the start and when it changes. The start event gets the seconds until the deadline.
    """

    def __init__(
        self,
        tracker: Callable[[Event], object],
        configure: Callable[[int], None],
        note: str,
        deadline: float | None = None,
    ) -> None:
        self._tracker, self._configure, self._note = tracker, configure, note
        self._deadline = deadline
        self._started = False
        self._waiting: list[dict[str, Any]] = []

    def __call__(self, event: Event) -> None:
        if event["event"] in ("start", "plan"):
            self._configure(event["max_iters"])
        if event["event"] == "start":
            self._started = True
            limit = {"deadline": self._deadline - time.monotonic()} if self._deadline is not None else {}
            self._tracker({"corpus_note": self._note} | event | limit)
            for earlier in self._waiting:
                self._tracker(earlier)
        elif self._started:
            self._tracker(event)
        else:
            self._waiting.append(event)
