"""Predictions of `quill estimate --world_size=N` against runs of 1, 2 and 4 processes on this CPU (gloo).

    python benchmarks/estimate_processes.py --json=estimate-processes.json

Each case trains under torchrun. Memory is the largest peak resident set of its processes. Bytes are those that the
loopback interface sends between the first and the last step, headers of packets included, in a network namespace of the
run's own (Linux; else they are not counted). Exit code 1 if a prediction is off by more than 15 %.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from argparse import SUPPRESS, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import argument_parser, describe_hardware, peak_memory, print_table, run_process, run_worker, write_json

from quill.data.corpus import find_demo_corpus
from quill.data.dataset import open_dataset, prepare_dataset
from quill.runs.presets import read_config
from quill.runs.settings import build_configs, default_settings

if TYPE_CHECKING:
    from quill.planning.planned_run import PlannedRun

ALLOWED = 0.15
FULL_SIZE = {"batch_size": 4, "dropout": 0.0}
# name: (number of processes, preset, settings that differ from it)
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "full size, 1 process": (1, "shakespeare", FULL_SIZE),
    "full size, 2 processes": (2, "shakespeare", FULL_SIZE),
    "full size, 4 processes": (4, "shakespeare", FULL_SIZE),
    "laptop, 2 processes": (2, "laptop", {}),
    "modern laptop, 2 processes": (2, "modern-laptop", {"dtype": "float32"}),
    "modern laptop, 4 processes": (4, "modern-laptop", {"dtype": "float32"}),
}


def main() -> int:
    """Predict and train each case, print the table and write JSON; or run as a worker, with `--worker`."""
    parser = argument_parser("Predictions of quill estimate --world_size against measurements.", runs=1)
    parser.add_argument("--steps", type=int, default=8, help="steps of each run (%(default)s)")
    parser.add_argument("--only", default="", help="cases with this in their name")
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
            print(case, file=sys.stderr, flush=True)
            flags = [f"--case={case}", f"--folder={arguments.folder}", f"--steps={arguments.steps}"]
            predicted = run_worker(__file__, "--worker=predict", *flags)[0]
            results.append({"case": case, "predicted": predicted, "measured": measure(CASES[case][0], flags)})
    print(describe_hardware())
    good = report(results)
    if arguments.json:
        write_json(arguments.json, "estimate_processes", results, corpus=corpus.note, allowed=ALLOWED)
    return 0 if good else 1


def measure(world_size: int, flags: list[str]) -> dict[str, Any]:
    """Train a case under torchrun, and return the peak memory of its largest process and the bytes that each sends."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        words += [__file__, "--worker=train", *flags, f"--json={folder}"]
        isolated = namespace()
        run_process([*isolated, *words], environment={"OMP_NUM_THREADS": "1"})
        ranks = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("rank-*.json"))]
    assert len(ranks) == world_size
    sent = ranks[0]["bytes_per_step"]
    return {
        "peak_bytes": max(rank["peak_bytes"] for rank in ranks),
        "sent_bytes": sent / world_size if isolated and sent is not None else None,
    }


def namespace() -> list[str]:
    """Return the words that run a command in a network namespace with nothing but a loopback interface; none if not."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return []
    words = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        run_process([*words, "true"])
    except RuntimeError:  # not allowed here
        return []
    return words


def report(results: list[dict[str, Any]]) -> bool:
    """Print the table; return whether all predictions are good."""
    rows, good = [], True
    for result in results:
        row = [result["case"]]
        for name in ("peak_bytes", "sent_bytes"):
            predicted, measured = result["predicted"][name], result["measured"][name]
            if measured is None or not predicted:  # one process sends nothing
                row += [f"{predicted / 1e6:,.2f}", "not counted", ""]
                continue
            result[name.replace("bytes", "ratio")] = ratio = predicted / measured
            good = good and abs(ratio - 1) <= ALLOWED
            row += [f"{predicted / 1e6:,.2f}", f"{measured / 1e6:,.2f}", f"{ratio:.3f}"]
        rows.append(row)
    columns = ["case", "peak MB of a process: predicted", "measured", "ratio"]
    columns += ["MB sent by a process in a step: predicted", "measured", "ratio"]
    print_table("Several processes, predicted and measured", columns, rows)
    return good


# The functions below run in the workers.


def configure(arguments: Namespace, out_dir: str, **context: Any) -> PlannedRun:
    """Return the case's run."""
    from quill.planning.planned_run import PlannedRun
    from quill.training.context import resolve_context

    _, preset, changes = CASES[arguments.case]
    asked = read_config(preset)[0] | changes
    asked |= {"max_iters": arguments.steps, "eval_interval": arguments.steps, "eval_iters": 1, "warmup_iters": 0}
    settings = default_settings(asked.get("architecture", "classic")) | asked
    model, config, _ = build_configs(settings, vocab_size=open_dataset(arguments.folder).tokenizer.vocab_size)
    return PlannedRun(model, config, resolve_context(out_dir, device="cpu", dtype="float32", log_interval=1, **context))


def predict(arguments: Namespace) -> dict[str, Any]:
    """Return what `quill estimate` says about the case."""
    from quill.planning.parallel import peak_of_process, process_cost

    run, world_size = configure(arguments, "out"), CASES[arguments.case][0]
    cost = process_cost(run, world_size)
    return {"peak_bytes": peak_of_process(run, cost, world_size), "sent_bytes": cost.sent}


def train_for_real(arguments: Namespace) -> dict[str, Any]:
    """Train the case in this process, one of several, and write its peak memory and the traffic of all of them."""
    from quill.distributed.environment import read_ranks
    from quill.distributed.joining import joined
    from quill.process import keep_freed_memory
    from quill.training.loop import train

    keep_freed_memory()
    sent: list[int] = []

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            sent.append(bytes_sent())

    ranks = read_ranks()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out_dir, joined(ranks, {}) as group:
        run = configure(arguments, out_dir, group=group)
        train(run.model, run.config, run.context, open_dataset(arguments.folder), report=watch)
    steps = len(sent) - 1
    figures = {"peak_bytes": peak_memory(), "bytes_per_step": (sent[-1] - sent[0]) / steps if steps > 0 else None}
    (Path(arguments.json) / f"rank-{ranks.rank}.json").write_text(json.dumps(figures), encoding="utf-8")
    return figures


def bytes_sent() -> int:
    """Return the bytes that the loopback interface has sent so far; 0 where the system does not say."""
    counters = Path("/proc/self/net/dev")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[9]) for line in lines if line.strip().startswith("lo:")), 0)


if __name__ == "__main__":
    sys.exit(main())
