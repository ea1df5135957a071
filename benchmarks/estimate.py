"""Does `quill estimate` tell the truth? What it predicts beside what then happens, in memory and in time.

    python benchmarks/estimate.py --json=estimate.json

Each configuration is estimated in a fresh process and then trained for a few steps by `train()` in another one,
evaluation and checkpoint included. Memory is the most that the process ever held (its resident set); on CUDA it is
what PyTorch allocated at most. Exit code 1 if a prediction is further off than 15 %. A busy machine makes times
differ from one minute to the next, so `--memory` leaves them out of the judgement. The last table says what gradient
checkpointing saves at the founding size.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import SUPPRESS, Namespace
from dataclasses import asdict
from typing import Any

from measure import argument_parser, describe_hardware, peak_memory, print_table, run_worker, write_json

from quill.data.corpus import find_demo_corpus
from quill.data.dataset import open_dataset, prepare_dataset
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

ALLOWED = 0.15
LAPTOP = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "batch_size": 12}
# name: (settings, steps). The first two steps are not timed: memory is still being gathered.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "founding, batch 4": ({"batch_size": 4}, 8),
    "founding, batch 4, dropout 0": ({"batch_size": 4, "dropout": 0.0}, 8),
    "founding, batch 4, checkpointing": ({"batch_size": 4, "gradient_checkpointing": True}, 8),
    "founding, batch 4, 4 times a step": ({"batch_size": 4, "gradient_accumulation_steps": 4}, 5),
    "founding, batch 16": ({"batch_size": 16}, 6),
    "founding, batch 16, dropout 0": ({"batch_size": 16, "dropout": 0.0}, 6),
    "founding, batch 16, checkpointing": ({"batch_size": 16, "gradient_checkpointing": True}, 6),
    "founding, batch 16, both": ({"batch_size": 16, "dropout": 0.0, "gradient_checkpointing": True}, 6),
    "laptop": (LAPTOP, 100),
    "laptop, batch 128": (LAPTOP | {"batch_size": 128}, 30),
}
SAVES = ("founding, batch 16", "founding, batch 16, checkpointing")


def main() -> int:
    """Predict and train each case, print the tables and write JSON; or be a worker, when `--worker` says so."""
    parser = argument_parser("What quill estimate predicts, beside what then happens.", runs=1)
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
    """Run one worker in a fresh process of this script, and return what it found."""
    flags = (f"--worker={what}", f"--case={case}", f"--folder={arguments.folder}", f"--device={arguments.device}")
    return run_worker(__file__, *flags)[0]


def compare(case: str, predicted: dict[str, Any], happened: dict[str, Any]) -> dict[str, Any]:
    """Return both sides of a case and their ratios, prediction over truth."""
    return {
        "case": case,
        "predicted": predicted,
        "measured": happened,
        "memory_ratio": predicted["peak_bytes"] / happened["peak_bytes"],
        "time_ratio": predicted["seconds_per_step"] / happened["seconds_per_step"],
    }


def report(results: list[dict[str, Any]], *, memory_only: bool) -> bool:
    """Print the tables; say whether all predictions are good."""
    rows, good = [], True
    for result in results:
        judged = [result["memory_ratio"]] + ([] if memory_only else [result["time_ratio"]])
        right = all(abs(ratio - 1) <= ALLOWED for ratio in judged)
        good = good and right
        predicted, happened = result["predicted"], result["measured"]
        rows.append(
            [
                result["case"],
                f"{predicted['peak_bytes'] / 1e6:,.0f}",
                f"{happened['peak_bytes'] / 1e6:,.0f}",
                f"{result['memory_ratio']:.2f}",
                f"{predicted['seconds_per_step']:.3f}",
                f"{happened['seconds_per_step']:.3f}",
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
    """Print what gradient checkpointing saves at the founding size: in tensors, and in what the process holds."""
    if not all(name in results for name in SAVES):
        return
    rows = []
    for name in SAVES:
        predicted, happened = results[name]["predicted"], results[name]["measured"]
        static = happened["bytes_before"] + predicted["weights_bytes"] + predicted["optimizer_bytes"]
        rows.append([name, predicted["activations_bytes"] / 1e6, (happened["peak_bytes"] - static) / 1e6])
    (_, *without), (_, *within) = rows
    shares = (left / right for left, right in zip(within, without, strict=True))
    rows.append(["share that is left", *(f"{share:.0%}" for share in shares)])
    columns = ["founding size, batch 16", "activations, MB (traced)", "beyond weights and optimizer, MB (measured)"]
    print_table("What gradient checkpointing saves", columns, rows)


# What follows runs in the workers.


def configure(arguments: Namespace, out_dir: str) -> tuple[GPTConfig, TrainConfig, int]:
    """Return the case's configurations and its number of steps."""
    settings, steps = CASES[arguments.case]
    vocab_size = open_dataset(arguments.folder).tokenizer.vocab_size
    model = {name: value for name, value in settings.items() if name in GPTConfig.__dataclass_fields__}
    training = {name: value for name, value in settings.items() if name in TrainConfig.__dataclass_fields__}
    config = TrainConfig(
        **training, max_iters=steps, eval_interval=steps, eval_iters=1, log_interval=1, sample_tokens=0,
        device=arguments.device, out_dir=out_dir,
    )  # fmt: skip
    return GPTConfig(vocab_size, **model), config, steps


def predict(arguments: Namespace) -> dict[str, Any]:
    """Estimate the case."""
    from quill.device import resolve_device
    from quill.planning.estimate import estimate_run
    from quill.process import keep_freed_memory

    keep_freed_memory()  # as the command does
    model_config, config, _ = configure(arguments, "out")
    return asdict(estimate_run(model_config, config, device=resolve_device(config.device)))


def train_for_real(arguments: Namespace) -> dict[str, Any]:
    """Train the case, and return its peak memory and the mean time of a step."""
    import psutil
    import torch

    import quill.training.state  # noqa: F401 - loaded before memory is looked at
    from quill.device import resolve_device
    from quill.process import keep_freed_memory
    from quill.training.loop import train
    from quill.training.parameter_groups import build_optimizer

    keep_freed_memory()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out_dir:
        model_config, config, steps = configure(arguments, out_dir)
        device = resolve_device(config.device)
        build_optimizer(torch.nn.Linear(1, 1), config)  # loads what an optimizer loads
        before = psutil.Process().memory_info().rss if device.type == "cpu" else 0
        events: list[dict[str, Any]] = []
        train(model_config, config, open_dataset(arguments.folder), report=events.append)
    tokens = config.batch_size * config.gradient_accumulation_steps * model_config.block_size
    seconds = [tokens / event["tokens_per_second"] for event in events if event["event"] == "step"][2:]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return {"peak_bytes": peak, "bytes_before": before, "seconds_per_step": sum(seconds) / len(seconds), "steps": steps}


if __name__ == "__main__":
    sys.exit(main())
