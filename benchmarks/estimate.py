"""Predictions of `quill estimate` against measurements: memory and time of runs that then take place.

    python benchmarks/estimate.py --json=estimate.json

Each configuration is estimated in a fresh process and then trained for a few steps by `train()` in another one,
evaluation and checkpoint included. Memory is the peak resident set of the process; on CUDA it is the peak that PyTorch
allocated. Exit code 1 if a prediction is off by more than 15 %. On a busy machine times vary, so `--memory` judges
memory only. The last table says what gradient checkpointing saves at full size.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import SUPPRESS, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from measure import argument_parser, describe_hardware, peak_memory, print_table, run_worker, write_json

from quill.data.corpus import find_demo_corpus
from quill.data.dataset import open_dataset, prepare_dataset
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

if TYPE_CHECKING:
    from quill.planning.planned_run import PlannedRun

ALLOWED = 0.15
LAPTOP = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "batch_size": 12}
# name: (settings, steps). The first two steps are not timed, because the allocator still grows.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "full size, batch 4": ({"batch_size": 4}, 8),
    "full size, batch 4, dropout 0": ({"batch_size": 4, "dropout": 0.0}, 8),
    "full size, batch 4, checkpointing": ({"batch_size": 4, "gradient_checkpointing": True}, 8),
    "full size, batch 4, 4 times a step": ({"batch_size": 4, "gradient_accumulation_steps": 4}, 5),
    "full size, batch 16": ({"batch_size": 16}, 6),
    "full size, batch 16, dropout 0": ({"batch_size": 16, "dropout": 0.0}, 6),
    "full size, batch 16, checkpointing": ({"batch_size": 16, "gradient_checkpointing": True}, 6),
    "full size, batch 16, both": ({"batch_size": 16, "dropout": 0.0, "gradient_checkpointing": True}, 6),
    "laptop": (LAPTOP, 100),
    "laptop, batch 128": (LAPTOP | {"batch_size": 128}, 30),
}
SAVES = ("full size, batch 16", "full size, batch 16, checkpointing")


def main() -> int:
    """Predict and train each case, print the tables and write JSON; or run as a worker, with `--worker`."""
    parser = argument_parser("Predictions of quill estimate against measurements.", runs=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--memory", action="store_true", help="judge memory only: on a busy machine times vary")
    parser.add_argument("--worker", help=SUPPRESS)
    parser.add_argument("--case", help=SUPPRESS)
    parser.add_argument("--folder", help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(predict(arguments) if arguments.worker == "predict" else train_for_real(arguments)))
        return 0
    corpus = find_demo_corpus()
    results = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments.folder = str(prepare_dataset(corpus.name, data_dir=folder, corpus=corpus).folder)
        for case in [name for name in CASES if arguments.only in name]:
            for run in range(arguments.runs):
                print(f"run {run + 1} of {arguments.runs}: {case}", file=sys.stderr, flush=True)
                predicted = start_worker("predict", case, arguments)
                results.append(compare(case, predicted, start_worker("train", case, arguments)))
    print(describe_hardware())
    good = report(results, memory_only=arguments.memory)
    if arguments.json:
        write_json(arguments.json, "estimate", results, corpus=corpus.note, allowed=ALLOWED)
    return 0 if good else 1


def start_worker(what: str, case: str, arguments: Namespace) -> dict[str, Any]:
    """Run one worker in a fresh process of this script, and return its figures."""
    flags = (f"--worker={what}", f"--case={case}", f"--folder={arguments.folder}", f"--device={arguments.device}")
    return run_worker(__file__, *flags)[0]


def compare(case: str, predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return both sides of a case and their ratios, prediction over measurement."""
    return {
        "case": case,
        "predicted": predicted,
        "measured": measured,
        "memory_ratio": predicted["peak_bytes"] / measured["peak_bytes"],
        "time_ratio": predicted["seconds_per_step"] / measured["seconds_per_step"],
    }


def report(results: list[dict[str, Any]], *, memory_only: bool) -> bool:
    """Print the tables; return whether all predictions are good."""
    rows, good = [], True
    for result in results:
        judged = [result["memory_ratio"]] + ([] if memory_only else [result["time_ratio"]])
        right = all(abs(ratio - 1) <= ALLOWED for ratio in judged)
        good = good and right
        predicted, measured = result["predicted"], result["measured"]
        rows.append(
            [
                result["case"],
                f"{predicted['peak_bytes'] / 1e6:,.0f}",
                f"{measured['peak_bytes'] / 1e6:,.0f}",
                f"{result['memory_ratio']:.2f}",
                f"{predicted['seconds_per_step']:.3f}",
                f"{measured['seconds_per_step']:.3f}",
                f"{result['time_ratio']:.2f}",
                "yes" if right else "NO",
            ]
        )
    columns = ["case", "peak MB: predicted", "measured", "ratio"]
    columns += ["s a step: predicted", "measured", "ratio", "within 15 %"]
    print_table("Predicted and measured", columns, rows)
    report_checkpointing({result["case"]: result for result in results})
    return good


def report_checkpointing(results: dict[str, dict[str, Any]]) -> None:
    """Print what gradient checkpointing saves at full size, in tensors and in memory of the process."""
    if not all(name in results for name in SAVES):
        return
    rows = []
    for name in SAVES:
        predicted, measured = results[name]["predicted"], results[name]["measured"]
        static = measured["bytes_before"] + predicted["weights_bytes"] + predicted["optimizer_bytes"]
        rows.append([name, predicted["activations_bytes"] / 1e6, (measured["peak_bytes"] - static) / 1e6])
    (_, *without), (_, *within) = rows
    shares = (left / right for left, right in zip(within, without, strict=True))
    rows.append(["share that remains", *(f"{share:.0%}" for share in shares)])
    columns = ["full size, batch 16", "activations, MB (traced)", "beyond weights and optimizer, MB (measured)"]
    print_table("What gradient checkpointing saves", columns, rows)


# The functions below run in the workers.


def configure(arguments: Namespace, out_dir: str) -> tuple[PlannedRun, int]:
    """Return the case's run and its number of steps."""
    from quill.planning.planned_run import PlannedRun
    from quill.training.context import resolve_context

    settings, steps = CASES[arguments.case]
    vocab_size = open_dataset(arguments.folder).tokenizer.vocab_size
    model = {name: value for name, value in settings.items() if name in GPTConfig.__dataclass_fields__}
    training = {name: value for name, value in settings.items() if name in TrainConfig.__dataclass_fields__}
    config = TrainConfig(**training, max_iters=steps, eval_interval=steps, eval_iters=1)
    checkpointing = settings.get("gradient_checkpointing", False)
    context = resolve_context(out_dir, device=arguments.device, gradient_checkpointing=checkpointing, log_interval=1)
    return PlannedRun(GPTConfig(vocab_size, **model), config, context), steps


def predict(arguments: Namespace) -> dict[str, Any]:
    """Estimate the case."""
    from quill.planning.estimate import estimate_run
    from quill.process import keep_freed_memory

    keep_freed_memory()  # as the command does
    run, _ = configure(arguments, "out")
    return asdict(estimate_run(run))


def train_for_real(arguments: Namespace) -> dict[str, Any]:
    """Train the case, and return its peak memory and the mean time of a step."""
    import psutil
    import torch

    import quill.training.state  # noqa: F401 - imported before memory is measured
    from quill.process import keep_freed_memory
    from quill.training.loop import train
    from quill.training.parameter_groups import build_optimizer

    keep_freed_memory()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out_dir:
        run, steps = configure(arguments, out_dir)
        device, config = run.context.device, run.config
        build_optimizer(torch.nn.Linear(1, 1), config)  # imports what an optimizer imports
        before = psutil.Process().memory_info().rss if device.type == "cpu" else 0
        events: list[dict[str, Any]] = []
        train(run.model, config, run.context, open_dataset(arguments.folder), report=events.append)
    tokens = config.batch_size * config.gradient_accumulation_steps * run.model.block_size
    seconds = [tokens / event["tokens_per_second"] for event in events if event["event"] == "step"][2:]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return {"peak_bytes": peak, "bytes_before": before, "seconds_per_step": sum(seconds) / len(seconds), "steps": steps}


if __name__ == "__main__":
    sys.exit(main())
