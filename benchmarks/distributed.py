"""Training at full size in one process and in two: tokens a second, and the memory that each process needs.

    python benchmarks/distributed.py --json=distributed.json

One process with one thread and with two; two processes of one thread under torchrun (gloo), with all weights in each
(DDP) and with a half (FSDP). All train on the same batches. Memory is that of the process which needs most.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from measure import (
    alternate,
    argument_parser,
    describe_hardware,
    peak_memory,
    print_table,
    run_process,
    write_json,
)

from quill.data.corpus import find_demo_corpus
from quill.data.dataset import prepare_dataset

CONTESTANTS = {
    "1 process, 1 thread": (1, 1, "ddp"),
    "1 process, 2 threads": (1, 2, "ddp"),
    "2 processes of 1 thread, DDP": (2, 1, "ddp"),
    "2 processes of 1 thread, FSDP": (2, 1, "fsdp"),
}
"""name: processes, threads of each, and what each keeps"""
WARM_UP = 1  # steps that are not counted


def main() -> int:
    """Measure every contestant, print the table and write JSON; or run as a worker, with `--worker`."""
    parser = argument_parser("Training at full size in one process and in two.", runs=5)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of each run (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="windows of a step (%(default)s)")
    parser.add_argument("--preset", default="shakespeare", help="preset whose model is trained (%(default)s)")
    parser.add_argument("--worker", help=SUPPRESS)
    parser.add_argument("--folder", help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train_for_real(arguments)
        return 0
    corpus = find_demo_corpus()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tokens = str(prepare_dataset(corpus.name, data_dir=folder, corpus=corpus).folder)
        flags = [
            f"--folder={tokens}",
            *(f"--{each}={vars(arguments)[each]}" for each in ("steps", "batch_size", "preset")),
        ]
        measured = {name: partial(measure, how, flags) for name, how in CONTESTANTS.items()}
        results = alternate(measured, arguments.runs)
    print(describe_hardware())
    report(results)
    if arguments.json:
        write_json(arguments.json, "distributed", results, corpus=corpus.note)
    return 0


def report(results: dict[str, dict[str, Any]]) -> None:
    """Print the speeds beside those of one process, and the memory beside that of DDP."""
    speeds = {name: figures["tokens_per_s"] for name, figures in results.items()}
    one, two = (speeds[name].median for name in list(CONTESTANTS)[:2])
    ddp = results["2 processes of 1 thread, DDP"]["held_MB"].median
    rows = [
        [name, speeds[name], speeds[name].median / one, speeds[name].median / two, figures["held_MB"],
         figures["held_MB"].median / ddp, figures["peak_MB"]]
        for name, figures in results.items()
    ]  # fmt: skip
    columns = ["contestant", "tokens/s", "of 1 thread", "of 2 threads", "weights, gradients and state of a process, MB"]
    print_table("Processes", [*columns, "of DDP's", "peak memory of a process, MB"], rows)


def measure(how: tuple[int, int, str], flags: list[str]) -> dict[str, float]:
    """Train in fresh processes; return tokens a second of all together, and the memory of the largest process."""
    processes, threads, parallel = how
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = [sys.executable, *(torchrun if processes > 1 else []), __file__, f"--worker={parallel}", *flags]
        run_process([*words, f"--json={folder}"], environment={"OMP_NUM_THREADS": str(threads)})
        ranks = [json.loads(file.read_text(encoding="utf-8")) for file in Path(folder).glob("rank-*.json")]
    assert len(ranks) == processes
    tokens = ranks[0]["tokens"] / max(rank["seconds"] for rank in ranks)
    memory = {name: max(rank[name] for rank in ranks) / 1e6 for name in ("held", "peak")}
    return {"tokens_per_s": tokens, "held_MB": memory["held"], "peak_MB": memory["peak"]}


# The function below runs in the workers.


def train_for_real(arguments: Namespace) -> None:
    """Take steps in this process, one of the run, and write its time and memory to a file."""
    from quill.data.dataset import open_dataset
    from quill.distributed.environment import read_ranks
    from quill.distributed.joining import joined
    from quill.process import keep_freed_memory
    from quill.runs.presets import read_config
    from quill.runs.settings import build_configs, default_settings
    from quill.training.config import tokens_per_step
    from quill.training.context import resolve_context
    from quill.training.setup import build_session, build_step, shard_session

    keep_freed_memory()
    dataset, ranks = open_dataset(arguments.folder), read_ranks()
    given = read_config(arguments.preset)[0] | {"batch_size": arguments.batch_size}
    settings = default_settings(given.get("architecture", "classic")) | given
    model, config, _ = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    with joined(ranks, {}) as group:
        context = resolve_context(device="cpu", dtype="float32", group=group, parallel=arguments.worker)
        session = build_session(model, config, context)
        session = shard_session(session, context) if context.sharded else session
        step, _ = build_step(session, dataset.train, config, context, warn=print)
        local, update, held = session.optimizer.local, session.optimizer.step, []

        def count_and_update() -> None:
            update()
            weights = list(session.model.parameters())
            tensors = [local(weight) for weight in weights]
            tensors += [
                local(weight.grad) for weight in weights if weight.grad is not None and not weight.grad.is_sparse
            ]
            tensors += [tensor for weight in weights for tensor in session.optimizer.state[weight].values()]
            held.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))

        session.optimizer.step = count_and_update  # type: ignore[method-assign]
        for number in range(WARM_UP):
            step(number)
        session.optimizer.step = update  # type: ignore[method-assign]
        started = time.perf_counter()
        for number in range(WARM_UP, WARM_UP + arguments.steps):
            step(number)
        seconds = time.perf_counter() - started
    figures = {"seconds": seconds, "tokens": arguments.steps * tokens_per_step(model, config), "held": held[0]}
    target = Path(arguments.json) / f"rank-{ranks.rank}.json"
    target.write_text(json.dumps(figures | {"peak": peak_memory()}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
