"""The speed next to a busy program: generation and training, with as many threads as cores and with one.

    python benchmarks/busy_core.py --runs 5

Threads that compute together wait for each other. If they spin while they wait, another program on one of their cores
slows all of them down, to less than one thread alone would do. So threads spin for a short while and then sleep. The
busy programs are endless loops, one pinned to each of the first cores where the system can pin.

Method: each figure is measured in a process of its own, contestants in turn. Results: docs/log.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from measure import Figures, alternate, argument_parser, describe_hardware, format_number, print_table, write_json

LOOP = (
    "import os, sys\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
)
SECONDS = 3.0
SIZES = {"small": (2, 64), "full size": (6, 384)}  # layers, width


def main() -> int:
    parser = argument_parser(__doc__ or "", runs=5)
    parser.add_argument("--measure", help="measure one thing, and print its figure (used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure.split("/"))))
        return 0
    print(describe_hardware())
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    contestants: dict[str, tuple[str, dict[str, str]]] = {}
    for size in SIZES:
        contestants |= {f"generation, {size}, {how}": (f"generate/{size}/{how}", {}) for how in ("one", "all", "auto")}
    training = {"one": {"OMP_NUM_THREADS": "1"}, "all": {"GOMP_SPINCOUNT": "4000"}, "spin": {"GOMP_SPINCOUNT": ""}}
    training["passive"] = {"OMP_WAIT_POLICY": "PASSIVE"}
    contestants |= {f"training, small, {how}": (f"train/small/{how}", env) for how, env in training.items()}
    results = {}
    for busy in range(len(cores) + 1):
        with busy_programs(cores[:busy]):
            turns = {name: contestant(*how) for name, how in contestants.items()}
            results[f"{busy} busy"] = alternate(turns, arguments.runs, quiet=True)
    columns = ["tokens/s", *(f"{busy} of {len(cores)} cores busy" for busy in range(len(cores) + 1))]
    rows = [
        [name, *(format_number(figures[name]["tokens_per_second"].median) for figures in results.values())]
        for name in contestants
    ]
    print_table("beside busy programs", columns, rows)
    if arguments.json:
        write_json(arguments.json, "busy_core", results, runs=arguments.runs, seconds=SECONDS)
    return 0


@contextlib.contextmanager
def busy_programs(cores: list[int]) -> Iterator[None]:
    """Keep an endless loop running on each of these cores."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, str(core)]) for core in cores]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def contestant(what: str, variables: dict[str, str]) -> Callable[[], Figures]:
    """Return what measures this in a process of its own; an empty variable is removed."""
    environment = {**os.environ, **variables}
    environment = {name: value for name, value in environment.items() if value}

    def turn() -> Figures:
        command = [sys.executable, __file__, f"--measure={what}"]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    return turn


def measure(what: str, size: str, how: str) -> Figures:
    """Return the tokens of some seconds of generation or training."""
    import torch

    from quill.model.build import build_model
    from quill.model.config import GPTConfig

    torch.manual_seed(0)
    layers, width = SIZES[size]
    model = build_model(GPTConfig(vocab_size=65, n_layer=layers, n_head=width // 32, n_embd=width, dropout=0.0))
    work = generation(model, how) if what == "generate" else training(model)
    work()
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() < started + SECONDS:
        tokens += work()
    return {"tokens_per_second": tokens / (time.perf_counter() - started)}


def generation(model, how: str) -> Callable[[], int]:
    """Return a function that generates 200 tokens and returns 200; `how` is the threads: one, all or auto."""
    from quill.engines.make import arrays_of
    from quill.engines.numba_engine import NumbaEngine
    from quill.engines.request import Request
    from quill.generation.batch_generator import BatchGenerator

    threads = {"one": 1, "all": os.cpu_count(), "auto": None}[how]
    batch = BatchGenerator(NumbaEngine(model.config, arrays_of(model), threads=threads))
    return lambda: sum(event.token is not None for _, event in batch.follow([Request((1,), 200)]))


def training(model) -> Callable[[], int]:
    """Return a function that trains one step on a batch and returns its number of tokens."""
    import torch
    from torch.nn import functional as F

    tokens_BT = torch.randint(65, (8, 65))
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> int:
        F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return tokens_BT[:, 1:].numel()

    return step


if __name__ == "__main__":
    sys.exit(main())
