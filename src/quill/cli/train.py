"""`quill train`: text in, a model out. Prepares the text, guards what an earlier run left, or goes on with it.

A run's folder holds its whole configuration, so `quill train --resume=True` needs no other flag.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.cli.arguments import (
    MODEL_FIELDS,
    TRAIN_FIELDS,
    Parser,
    add_configuration,
    build_configs,
    format_config,
    parse_config,
    settings_of,
)  # fmt: skip
from quill.device import keep_freed_memory
from quill.errors import CheckpointError, ConfigError, require

if TYPE_CHECKING:
    from quill.text.dataset import Dataset
    from quill.training.loop import TrainResult

# What may change when a run goes on: how long, how fast, how it is watched and where; never the model or its text.
RESUMABLE = frozenset(
    {
        "out_dir", "data_dir", "max_iters", "patience", "eval_interval", "eval_iters", "log_interval", "sample_tokens",
        "learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "weight_decay", "grad_clip", "device", "dtype",
        "compile", "gradient_checkpointing", "tensorboard",
    }
)  # fmt: skip


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill train` takes: all fields of model and training, and what to do with old runs."""
    parser.take_bare_word("dataset")
    parser.add_argument(
        "--resume", type=bool, default=False, help="go on with the run in out_dir, from its last checkpoint"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="start over where out_dir already holds a run")
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help="how long to train: picks model, batch, rates and steps for this text and machine; flags go on top",
    )
    add_configuration(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what can be done next."""
    result = train_run(arguments)
    if result is None:
        return 0
    if result.reason == "interrupted":
        return say_how_to_go_on("train", arguments.out_dir)
    print(f"next: quill generate --out_dir={quote(arguments.out_dir)}")
    return 0


def train_run(arguments: argparse.Namespace) -> TrainResult | None:
    """Train or go on as the arguments say, and return how it ended; None when there was nothing left to do."""
    if arguments.resume and arguments.overwrite:
        raise ConfigError("--resume=True goes on and --overwrite=True starts over: use one of them")
    if arguments.minutes is not None:
        return train_for_minutes(arguments)
    settings = resumed_settings(arguments) if arguments.resume else settings_of(arguments)
    out_dir = Path(settings["out_dir"])
    build_configs(settings)  # impossible values are found before any text is read
    require_folder(out_dir)
    if not arguments.resume and not arguments.overwrite:
        refuse_existing_run(out_dir, settings)
    keep_freed_memory()
    dataset = prepare(settings)
    if arguments.resume:
        from quill.training.checkpoint import find_checkpoint

        done = int(find_checkpoint(out_dir, "last").name.removeprefix("step-"))
        if done >= settings["max_iters"]:
            print(
                f"nothing left to do: the run in {out_dir} has finished its {done} steps "
                f"(for more: --resume=True --max_iters={2 * done})"
            )
            return None
    return start_training(settings, dataset, resume=arguments.resume, replace=arguments.overwrite)


def train_for_minutes(arguments: argparse.Namespace) -> TrainResult:
    """Train for as long as the arguments say, with the recipe that suits this text, this machine and that time."""
    from quill.cli.minutes import Pace, describe, fit_to_minutes

    require(0 < arguments.minutes < float("inf"), "minutes", arguments.minutes, "a number above 0")
    if arguments.resume:
        raise ConfigError("--minutes chooses a new run: leave it out to go on with one (--resume=True)")
    if not ({"architecture", "optimizer"} & arguments.given):
        arguments.architecture = "modern"
    asked = {name: value for name, value in settings_of(arguments).items() if name in arguments.given}
    build_configs(settings_of(arguments))
    out_dir = Path(arguments.out_dir)
    require_folder(out_dir)
    if not arguments.overwrite:
        refuse_existing_run(out_dir, asked)
    keep_freed_memory()
    started, seconds = time.monotonic(), arguments.minutes * 60
    dataset = prepare(settings_of(arguments) | {"block_size": asked.get("block_size", 8)})
    settings, speed = fit_to_minutes(dataset, arguments.minutes, asked)
    print(describe(settings, arguments.minutes), flush=True)
    plan = None if "max_iters" in asked else Pace(started, seconds, settings["max_iters"], speed.look)
    late = started + 1.1 * seconds  # only a machine that has become much slower since it was asked is stopped half way
    stop: Callable[[], str | None] = lambda: "time" if time.monotonic() > late else None  # noqa: E731
    return start_training(settings, dataset, replace=arguments.overwrite, stop=stop, plan=plan)


def say_how_to_go_on(command: str, out_dir: str) -> int:
    """Say how an interrupted run goes on, and return the exit code of an interrupted command."""
    print(f"saved; go on with: quill {command} --resume=True --out_dir={quote(out_dir)}")
    return 130


def prepare(settings: dict[str, Any]) -> Dataset:
    """Return the tokens to train on, preparing them where they are missing, long enough for the model's context."""
    from quill.device import resolve_device, resolve_dtype
    from quill.text.dataset import prepare_dataset
    from quill.text.windows import require_window

    resolve_dtype(settings["dtype"], resolve_device(settings["device"]))  # a GPU that is not there is found first
    dataset = prepare_dataset(settings["dataset"], tokenizer=settings["tokenizer"], data_dir=settings["data_dir"])
    require_window(dataset.train, settings["block_size"], f"the training split of {dataset.name}")
    require_window(dataset.val, settings["block_size"], f"the validation split of {dataset.name}")
    return dataset


def start_training(
    settings: dict[str, Any],
    dataset: Dataset,
    *,
    resume: bool = False,
    replace: bool = False,
    stop: Callable[[], str | None] | None = None,
    plan: Callable[[int], int] | None = None,
    mark: str = "",
) -> TrainResult:
    """Train with everything that a run leaves behind: config.yaml, metrics, samples, the picture, checkpoints.

    With `replace` an earlier run in the same folder goes. `stop` and `plan` are those of `train()`. `mark` is a comment
    that opens config.yaml.
    """
    from quill.training.display import choose_display
    from quill.training.loop import train
    from quill.training.report import JsonLines, LossPlot, Samples, TensorBoard, fan_out, read_events

    out_dir = Path(settings["out_dir"])
    model_config, config = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    tensorboard = TensorBoard(out_dir / "tensorboard") if config.tensorboard else None
    history = read_events(out_dir / "metrics.jsonl") if resume else []
    if replace:
        remove_run(out_dir)
    with choose_display(history=history) as display:
        everyone = fan_out(
            JsonLines(out_dir / "metrics.jsonl"), display, Samples(out_dir / "samples.txt", history), tensorboard,
            LossPlot(out_dir / "loss.png", history),
        )  # fmt: skip
        report = Reporter(
            everyone, lambda steps: write_config(out_dir, settings | {"max_iters": steps}, mark), dataset.note
        )
        return train(
            model_config,
            config,
            dataset,
            report=report,
            sample=sampler(dataset, config.sample_tokens, config.seed),
            resume=resume,
            stop=stop or (lambda: None),
            plan=plan,
        )


class Reporter:
    """Hands events on, once training has really begun: until then nothing in the run's folder is touched.

    What comes before the start (a warning about compiling) waits for it. `configure` is told how many steps the run
    shall have, when it begins and when that changes.
    """

    def __init__(self, consumer: Callable[[dict[str, Any]], None], configure: Callable[[int], None], note: str) -> None:
        self._consumer, self._configure, self._note = consumer, configure, note
        self._begun = False
        self._waiting: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("start", "plan"):
            self._configure(event["max_iters"])
        if event["event"] == "start":
            self._begun = True
            self._consumer({"corpus_note": self._note} | event)
            for earlier in self._waiting:
                self._consumer(earlier)
        elif self._begun:
            self._consumer(event)
        else:
            self._waiting.append(event)


def sampler(dataset: Dataset, length: int, seed: int) -> Callable[[Any], str] | None:
    """Return what writes a sample with a model, always from one start and seed: samples can be compared."""
    if not length:
        return None
    from quill.cli.generate import opening
    from quill.generation.language_model import LanguageModel

    start = opening(dataset.tokenizer)
    return lambda model: LanguageModel(model, dataset.tokenizer).generate(
        start, max_new_tokens=length, seed=seed, temperature=0.8
    )


def resumed_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of the run in out_dir, new flags on top; ConfigError for one that changes the model."""
    out_dir = Path(arguments.out_dir)
    stored = stored_settings(out_dir)
    if stored is None or not holds_run(out_dir):
        raise CheckpointError(f"{out_dir} holds no run to go on with: leave out --resume=True to start one")
    asked = {name: getattr(arguments, name) for name in (*MODEL_FIELDS, *TRAIN_FIELDS) if name in arguments.given}
    for name, value in asked.items():
        if name not in RESUMABLE and value != stored.get(name, value):
            raise ConfigError(
                f"--{name}={value} cannot be changed when a run goes on ({out_dir} has {name}={stored[name]}): "
                f"leave it out, or start another run with another --out_dir"
            )
    arguments.architecture = stored.get("architecture", "classic")
    return settings_of(arguments) | stored | asked | {"out_dir": str(out_dir)}


def refuse_existing_run(out_dir: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError when out_dir holds a run, naming what differs: hours of training are not lost by chance."""
    if not holds_run(out_dir):
        return
    stored = stored_settings(out_dir) or {}
    different = [name for name in settings if name in stored and stored[name] != settings[name] and name != "out_dir"]
    again = "start over with --overwrite=True, or choose another --out_dir"
    if not different:
        raise ConfigError(f"{out_dir} already holds this run: go on with --resume=True, {again}")
    shown = "; ".join(f"{name}={stored[name]}, here {settings[name]}" for name in different[:3])
    more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
    onwards = "go on with --resume=True, " if RESUMABLE.issuperset(different) else ""
    raise ConfigError(f"{out_dir} already holds a run with another configuration ({shown}{more}): {onwards}{again}")


def require_folder(out_dir: Path) -> None:
    """Raise ConfigError when a run cannot live there because a file is in its way."""
    for path in (out_dir, *out_dir.parents):
        if path.exists():
            if not path.is_dir():
                raise ConfigError(
                    f"out_dir={str(out_dir)!r} cannot be a folder: {path} is a file; choose another --out_dir"
                )
            return


def holds_run(out_dir: Path) -> bool:
    """Say whether there is something to lose: a folder without any checkpoint holds nothing yet."""
    return (out_dir / "last").is_file() or any((out_dir / "checkpoints").glob("step-*"))


def stored_settings(out_dir: Path) -> dict[str, Any] | None:
    """Return the configuration that a run was started with, types checked; None where there is none."""
    file = out_dir / "config.yaml"
    if not file.is_file():
        return None
    checker = Parser("train")
    add_configuration(checker)
    return checker.check_file(parse_config(file.read_text(encoding="utf-8"), str(file)), str(file))


def write_config(out_dir: Path, settings: dict[str, Any], mark: str = "") -> None:
    """Write the whole configuration where `--config` and `--resume` find it."""
    out_dir.mkdir(parents=True, exist_ok=True)
    draft = out_dir / ".config.yaml.draft"
    draft.write_text(mark + format_config(settings), encoding="utf-8")
    os.replace(draft, out_dir / "config.yaml")


def remove_run(out_dir: Path) -> None:
    """Delete what a run wrote into this folder, and nothing else that may lie there."""
    for name in ("last", "best", "config.yaml", "metrics.jsonl", "samples.txt", "loss.png"):
        (out_dir / name).unlink(missing_ok=True)
    for folder in (*(out_dir / "checkpoints").glob("step-*"), out_dir / "tensorboard"):
        shutil.rmtree(folder, ignore_errors=True)


def quote(path: str | Path) -> str:
    """Return a path as it can be pasted into a shell."""
    text = str(path)
    return f'"{text}"' if any(c.isspace() for c in text) else text
