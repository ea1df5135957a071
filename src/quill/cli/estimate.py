"""`quill estimate`: memory, time and parameters of a run before it starts. It has the flags of `quill train`.

For one process on this machine the figures come from planning/estimate.py, which measures. For a GPU by its name, or
several processes, cli/plan.py prints planning/utilisation.py, which computes. This module finds the size of the
vocabulary, and prints tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from quill.cli.arguments import Parser, add_configuration, settings_of
from quill.files import expand_home
from quill.planning.gpus import GPU, GPUS, find_gpu
from quill.runs.settings import build_configs
from quill.validation import require

if TYPE_CHECKING:
    from quill.planning.estimate import Estimate
    from quill.planning.planned_run import PlannedRun

LARGE_FILE = 50_000_000  # bytes; reading more would take longer than the estimate
USUAL_VOCABULARY = {"shakespeare": 65, "pydoc": 100, "tinystories": 100}


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill estimate` to the parser: all settings of a run."""
    parser.take_bare_word("dataset", several=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--world_size", type=int, default=1, help="number of processes, each with a device of its own")
    parser.add_argument(
        "--vocab_size", type=int, help="size of the vocabulary, instead of that of the text and its tokenizer"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help=f"auto, cpu, cuda, cuda:1 or mps to measure on this machine; to compute without one: {', '.join(GPUS)}",
        group="the run",
    )
    add_configuration(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print an estimate of the run, as a table or as JSON."""
    settings = settings_of(arguments)  # impossible values are found before any text is read
    from quill.device import describe_device
    from quill.planning.estimate import estimate_run
    from quill.planning.limits import check_size
    from quill.planning.out_of_memory import describe_shortage
    from quill.planning.planned_run import PlannedRun
    from quill.process import keep_freed_memory
    from quill.runs.session import resolve
    from quill.tracking.phase_display import PhaseDisplay

    keep_freed_memory()  # as `quill train` does
    gpu = find_gpu(settings["device"])
    require(1 <= arguments.world_size <= 1 << 16, "world_size", arguments.world_size, "1 to 65536")
    if gpu is not None or arguments.world_size > 1:
        return plan(arguments, settings, gpu)
    context = resolve(build_configs(settings)[2])
    vocab_size, val_tokens, note = vocabulary_of(arguments, settings)
    model_config, config, run_settings = build_configs(settings, vocab_size=vocab_size)
    planned = PlannedRun(model_config, config, context)
    check_size(planned)
    with PhaseDisplay() as display:
        estimate = estimate_run(
            planned, val_tokens=val_tokens, sample_tokens=run_settings.sample_tokens, on_progress=display
        )
    where = describe_device(context.device)
    if arguments.json:
        facts = {"device": where, "vocab_size": vocab_size, "note": note}
        print(json.dumps(facts | dataclasses.asdict(estimate), ensure_ascii=False))
        return 0
    show(describe(planned, estimate, where, note))
    if not estimate.fits:
        print(f"it does not fit: {describe_shortage(planned, estimate.available_bytes)}")
    return 0


def plan(arguments: argparse.Namespace, settings: dict[str, Any], gpu: GPU | None) -> int:
    """Print what each of several processes, or a GPU that is not here, is expected to need."""
    from quill.cli.plan import compute_plan
    from quill.tracking.phase_display import PhaseDisplay

    vocab_size, _, note = vocabulary_of(arguments, settings)
    with PhaseDisplay() as display:
        facts, lines = compute_plan(build_configs(settings, vocab_size=vocab_size), arguments, gpu, display)
    if arguments.json:
        print(json.dumps({"vocab_size": vocab_size, "note": note} | facts, ensure_ascii=False))
    else:
        show([("text", note), *lines])
    return 0


def vocabulary_of(arguments: argparse.Namespace, settings: dict[str, Any]) -> tuple[int, int | None, str]:
    """Return the vocabulary size, the number of validation tokens, and a note: those of the flag, else of the text."""
    if arguments.vocab_size is None:
        return find_vocabulary(settings)
    return arguments.vocab_size, None, f"none: vocab_size={arguments.vocab_size} is given"


def find_vocabulary(settings: dict[str, Any]) -> tuple[int, int | None, str]:
    """Return the vocabulary size, the number of validation tokens (None: unknown), and a note about their source.

    They come from prepared tokens, else from the text if it is available and not large; else they are assumed.
    """
    from quill.data.corpus import CorpusNotFoundError, find_corpus
    from quill.data.dataset import dataset_folder, open_dataset
    from quill.data.mixture import find_mixture
    from quill.data.sources import name_of, paths_of, title_of
    from quill.errors import CorpusError
    from quill.tokenizers.load import build_tokenizer

    dataset, kind = settings["dataset"], settings["tokenizer"]
    if mixture := find_mixture(dataset):
        dataset = [*mixture.paths]  # shares change neither the vocabulary nor the size
    try:
        prepared = open_dataset(dataset_folder(name_of(dataset), kind, settings["data_dir"]))
        return prepared.tokenizer.vocab_size, len(prepared.val), f"prepared tokens of {prepared.title}"
    except CorpusError:
        pass  # nothing prepared: look at the text itself
    title = title_of(dataset)
    size = 256 if kind == "byte" else USUAL_VOCABULARY.get(title, 100)
    files = [expand_home(path) for path in paths_of(dataset)]
    if (length := sum(os.path.getsize(file) for file in files if os.path.isfile(file))) > LARGE_FILE:
        return size, length // 10, f"vocab_size={size} assumed, because {title} is large and not prepared yet"
    try:
        corpus = find_corpus(dataset, tokenizer=kind, offline=True)
    except CorpusNotFoundError:
        if title not in USUAL_VOCABULARY:
            raise  # a path that does not exist is a mistake; a corpus that can be downloaded is not
        return size, None, f"vocab_size={size} assumed, because {title} is not here yet"
    tokenizer = build_tokenizer(kind, corpus.text)
    validation = tokenizer.encode(corpus.text[len(corpus.text) * 9 // 10 :], compact=True)
    return tokenizer.vocab_size, len(validation), corpus.note


def describe(planned: PlannedRun, estimate: Estimate, where: str, note: str) -> list[tuple[str, str]]:
    """Return the rows of the table: names and values in words."""
    from quill.units import format_bytes, format_duration

    c, e, config = planned.model, estimate, planned.config
    batch = f"{config.batch_size} × {c.block_size} tokens"
    if config.gradient_accumulation_steps > 1:
        batch += f", {config.gradient_accumulation_steps} in each step"
    lines = [
        ("text", note),
        ("model", f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, context {c.block_size}"),
        ("vocabulary", f"{c.vocab_size:,} tokens"),
        ("parameters", f"{e.parameters:,} ({e.parameters_without_positions:,} without positions)"),
        ("micro-batch", batch),
        ("weights", format_bytes(e.weights_bytes)),
        ("optimizer state", format_bytes(e.optimizer_bytes)),
        (
            "activations",
            f"{format_bytes(e.activations_bytes)} (gradients, {format_bytes(e.gradients_bytes)}, replace them)",
        ),
        ("allocator overhead", format_bytes(e.allocator_bytes)),
        ("Python and libraries", format_bytes(e.process_bytes)),
        ("peak memory", f"{format_bytes(e.peak_bytes)} of {format_bytes(e.available_bytes)} available"),
        ("largest micro-batch", f"{e.largest_batch_size} windows" if e.largest_batch_size else "none fits"),
        ("arithmetic", f"{e.flops_per_step / 1e9:,.1f} GFLOP per step"),
    ]
    if e.seconds_per_step is None or e.run_seconds is None or e.evaluation_seconds is None:
        return [*lines, ("time", "not measured: not even one window fits")]
    windows = f"{e.measured_batch_size} window{'s' if e.measured_batch_size > 1 else ''}"
    return [
        *lines,
        ("speed", f"{e.tokens_per_second:,.0f} tokens/s on {where}, measured with {windows}"),
        ("time of a step", format_duration(e.seconds_per_step)),
        ("time of an evaluation", format_duration(e.evaluation_seconds)),
        ("time of the run", f"{format_duration(e.run_seconds)} for {config.max_iters:,} steps"),
    ]


def show(lines: list[tuple[str, str]]) -> None:
    """Print a table: with lines in a terminal, as aligned columns elsewhere."""
    if not sys.stdout.isatty():
        width = max(len(name) for name, _ in lines)
        print(*(f"{name:<{width}}  {value}" for name, value in lines), sep="\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in lines:
        table.add_row(name, value, style="bold" if name in ("peak memory", "time of the run") else "")
    Console().print(table)
