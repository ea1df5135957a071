"""Speed and memory of a training step at full size: Quill, nanoGPT and transformers, in turn.

    python benchmarks/training.py --nanogpt=PATH --json=training.json

Every turn is a fresh process: it builds the model, takes warm-up steps that do not count, then steps that do. Quill is
measured through `train()` itself, which includes cutting its batches. The others get the same batches for free, and
take the steps of their own training scripts: forward and backward pass, gradient clipping at 1.0, AdamW (fused where
the contestant asks for it). Memory is the peak resident set of the process, and the part of it used after the
libraries were loaded; on CUDA it is the peak that PyTorch allocated. The limit is the speed of a product of two
4096 × 4096 matrices. GFLOP/s count the operations of one forward and backward pass, the same for all.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import math
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import measure
from measure import Figures, Summary

from quill.data.corpus import find_demo_corpus
from quill.data.dataset import open_dataset, prepare_dataset
from quill.data.windows import sample_batch
from quill.model.config import GPTConfig
from quill.training.config import TrainConfig

if TYPE_CHECKING:  # the process that measures stays without PyTorch
    import torch
    from torch import Tensor

    Peer = tuple[Any, Any, Callable[[Any, Tensor, Tensor], Tensor]]

LIMIT = "matrix product"
SEED = 1337


def main() -> int:
    """Measure the contestants in turn, print tables and write JSON; or run as a worker, with `--worker`."""
    description = "Training throughput and peak memory of the classic model at full size."
    parser = measure.argument_parser(description)
    add = parser.add_argument
    add("--batch_size", type=int, default=16, help="windows of 256 tokens a step (%(default)s)")
    add("--steps", type=int, default=2, help="counted steps a turn; 20 times as many on CUDA (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    add("--dtype", default="auto", help="auto is bfloat16 on CUDA and float32 elsewhere")
    add("--compile", action="store_true", help="measure compiled contestants too (always on CUDA)")
    for hidden in ("--worker", "--folder"):
        add(hidden, help=SUPPRESS)
    add("--interval", type=int, default=1, help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return 0
    if arguments.nanogpt and not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt={arguments.nanogpt} has no model.py: give a checkout of nanoGPT")

    corpus = find_demo_corpus()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments.folder = str(prepare_dataset(corpus.name, data_dir=folder, corpus=corpus).folder)
        facts = start_worker("facts", arguments)
        cuda = facts["device"].startswith("cuda")
        arguments.interval = 20 if cuda else 1  # a GPU must not wait for its loss to be read after each step
        names = contestants(arguments, compiled=cuda or arguments.compile, bfloat16=facts["may_use_bfloat16"])
        results = measure.alternate({name: turn(name, arguments) for name in names}, arguments.runs)
    print(measure.describe_hardware())
    report(results, facts, arguments.batch_size)
    if arguments.json:
        facts |= {"batch_size": arguments.batch_size, "corpus": corpus.note}
        measure.write_json(arguments.json, "training", results, **facts)
    return 0


def contestants(arguments: Namespace, *, compiled: bool, bfloat16: bool) -> list[str]:
    """Return the contestants in the order of their turns.

    `bfloat16` adds each of them, and the limit, with products in that format: on a CPU, which uses float32 otherwise.
    """
    names = ["Quill"]
    if arguments.nanogpt:
        names.append("nanoGPT")
    if importlib.util.find_spec("transformers"):
        names.append("transformers")
    if compiled:
        names += [f"{name}, compiled" for name in names]
    in_bfloat16 = [f"{name}, bfloat16" for name in (*names, LIMIT) if bfloat16 and ", " not in name]
    return [*names, *in_bfloat16, "Quill, gradient checkpointing", LIMIT]


def turn(name: str, arguments: Namespace) -> Callable[[], Figures]:
    """Return a function that runs a contestant once, in a process of its own."""
    return lambda: start_worker(name, arguments)


def start_worker(name: str, arguments: Namespace) -> dict[str, Any]:
    """Run this script as a worker in a fresh process, and return its figures."""
    names = ("batch_size", "steps", "device", "dtype", "folder", "interval", "nanogpt")
    flags = [f"--{flag}={getattr(arguments, flag)}" for flag in names if getattr(arguments, flag) is not None]
    return measure.run_worker(__file__, f"--worker={name}", *flags)[0]


def report(results: dict[str, dict[str, Summary]], facts: dict[str, Any], batch_size: int) -> None:
    """Print speed and memory, with Quill's as multiples of each other contestant's."""
    ours = results["Quill"]
    limits = {name: figures["flops_per_second"].median for name, figures in results.items() if name.startswith(LIMIT)}
    speeds, memories = [], []
    for name, figures in results.items():
        if name in limits:
            continue
        limit = limits[f"{LIMIT}, bfloat16" if name.endswith(", bfloat16") else LIMIT]
        speed, peak = figures["tokens_per_second"], figures["peak_megabytes"]
        ratio = ours["tokens_per_second"].median / speed.median
        flops = speed.median * facts["flops_per_token"]
        loss = f"{figures['first_loss'].median:.3f}"
        speeds.append([name, str(speed), f"{ratio:.2f}", f"{flops / 1e9:,.0f}", f"{flops / limit:.0%}", loss])
        ratio = ours["peak_megabytes"].median / peak.median
        own = peak.median - figures["megabytes_before"].median
        memories.append([name, str(peak), f"{own:,.0f}", f"{ratio:.2f}", int(figures["parameters"].median)])
    speeds += [[f"{name}, 4096³", "", "", f"{limit / 1e9:,.0f}", "100%", ""] for name, limit in limits.items()]
    what = f"batch {batch_size} × 256, {facts['device']}, {facts['dtype']}"
    columns = ["contestant", "tokens/s: median (range)", "Quill is × as fast", "GFLOP/s", "of the limit"]
    uniform = f"first loss (ln V = {math.log(facts['vocab_size']):.3f})"
    measure.print_table(f"Training step, {what}", [*columns, uniform], speeds)
    columns = [
        "contestant",
        "peak MB: median (range)",
        "after libraries",
        "Quill uses × of it",
        "parameters",
    ]
    measure.print_table(f"Peak memory, {what}", columns, memories)


def work(arguments: Namespace) -> dict[str, Any]:
    """Run the worker named by `--worker`, and return its figures."""
    import torch

    from quill.device import describe_device, multiplies_bfloat16, resolve_device, resolve_dtype

    device = resolve_device(arguments.device)
    dtype = resolve_dtype(arguments.dtype, device)
    vocab_size = open_dataset(arguments.folder).tokenizer.vocab_size
    name, _, variant = arguments.worker.partition(", ")
    dtype = torch.bfloat16 if variant == "bfloat16" else dtype
    if name == "facts":
        return {
            "device": describe_device(device),
            "dtype": str(dtype).removeprefix("torch."),
            "vocab_size": vocab_size,
            "flops_per_token": flops_per_token(vocab_size),
            "may_use_bfloat16": device.type == "cpu" and dtype == torch.float32 and multiplies_bfloat16(),
        }
    if name == LIMIT:
        return {"flops_per_second": multiply_matrices(device, dtype)}
    if name == "Quill":
        return train_quill(arguments, vocab_size, device, variant)
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as nanoGPT's script does
    load, build = PEERS[name]
    library = load(arguments)
    before = peak_megabytes(device)
    peer = build(library, vocab_size, device)
    figures = train_peer(arguments, peer, device, dtype, compiled=variant == "compiled")
    return {**figures, "megabytes_before": before}


def train_quill(arguments: Namespace, vocab_size: int, device: torch.device, variant: str) -> dict[str, float]:
    """Train with Quill's own loop for a few steps, and return speed and memory from its events."""
    from quill.process import keep_freed_memory
    from quill.training.context import resolve_context
    from quill.training.loop import train

    keep_freed_memory()  # as `quill train` does
    events: list[dict[str, Any]] = []
    steps = (1 + arguments.steps) * arguments.interval
    before = peak_megabytes(device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out_dir:
        config = TrainConfig(
            batch_size=arguments.batch_size,
            max_iters=steps,
            eval_interval=steps,
            eval_iters=1,
            seed=SEED,
        )
        context = resolve_context(
            out_dir,
            device=arguments.device,
            dtype="bfloat16" if variant == "bfloat16" else arguments.dtype,
            compile=variant == "compiled",
            gradient_checkpointing=variant == "gradient checkpointing",
            log_interval=arguments.interval,
        )
        train(GPTConfig(vocab_size), config, context, open_dataset(arguments.folder), report=events.append)
    speeds = [event["tokens_per_second"] for event in events if event["event"] == "step"][1:]
    return {
        "tokens_per_second": len(speeds) / sum(1 / speed for speed in speeds),
        "first_loss": next(event["train_loss"] for event in events if event["event"] == "evaluation"),
        "parameters": next(event["parameters"] for event in events if event["event"] == "start"),
        "peak_megabytes": peak_megabytes(device),
        "megabytes_before": before,
    }


def train_peer(
    arguments: Namespace, peer: Peer, device: torch.device, dtype: torch.dtype, *, compiled: bool
) -> dict[str, float]:
    """Run the training steps of a peer, and return their speed and memory."""
    import torch

    model, optimizer, loss_of = peer
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    batches = list(draw_batches(arguments, device))
    with torch.no_grad(), autocast:
        first_loss = loss_of(model.eval(), *batches[0]).item()
    forward = torch.compile(model.train()) if compiled else model.train()
    started = 0.0
    for step, (inputs_BT, targets_BT) in enumerate(batches):
        if step == arguments.interval:  # all before it was the warm-up
            started = now(device)
        with autocast:
            loss = loss_of(forward, inputs_BT, targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % arguments.interval == 0:
            loss.item()  # as often as Quill reads its loss
    counted = sum(inputs_BT.numel() for inputs_BT, _ in batches[arguments.interval :])
    return {
        "tokens_per_second": counted / (now(device) - started),
        "first_loss": first_loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "peak_megabytes": peak_megabytes(device),
    }


def build_nanogpt(module: Any, vocab_size: int, device: torch.device) -> Peer:
    """Return nanoGPT's full-size model, the optimizer that it configures, and its loss."""
    shape, recipe = GPTConfig(vocab_size), TrainConfig()
    names = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**{name: getattr(shape, name) for name in names})).to(device)
        betas = (recipe.beta1, recipe.beta2)
        optimizer = model.configure_optimizers(recipe.weight_decay, recipe.learning_rate, betas, device.type)
    return model, optimizer, lambda model, inputs_BT, targets_BT: model(inputs_BT, targets_BT)[1]


def build_transformers(library: Any, vocab_size: int, device: torch.device) -> Peer:
    """Return transformers' GPT-2 at full size, with random weights and all its biases, and fused AdamW."""
    from quill.evaluation.loss import cross_entropy
    from quill.training.parameter_groups import build_optimizer

    shape = GPTConfig(vocab_size)
    config = library.GPT2Config(
        vocab_size=vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        activation_function="gelu",
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = library.GPT2LMHeadModel(config).to(device)

    def loss_of(model: Any, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return cross_entropy(model(inputs_BT, use_cache=False).logits, targets_BT)

    return model, build_optimizer(model, TrainConfig()), loss_of


PEERS: dict[str, tuple[Callable[[Namespace], Any], Callable[..., Peer]]] = {
    "nanoGPT": (
        lambda flags: measure.import_file(flags.nanogpt / "model.py", "nanogpt_model"),
        build_nanogpt,
    ),
    "transformers": (lambda flags: importlib.import_module("transformers"), build_transformers),
}


def draw_batches(arguments: Namespace, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of Quill's loop: those of the warm-up, then the counted ones."""
    import torch

    tokens, shape = open_dataset(arguments.folder).train, GPTConfig(1)
    sizes = {"batch_size": arguments.batch_size, "block_size": shape.block_size}
    for step in range((1 + arguments.steps) * arguments.interval):
        inputs_BT, targets_BT = sample_batch(tokens, **sizes, seed=SEED, step=step)
        yield torch.from_numpy(inputs_BT).to(device), torch.from_numpy(targets_BT).to(device)


def flops_per_token(vocab_size: int) -> float:
    """Return the floating-point operations of a token's forward and backward pass, as PyTorch counts them."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from quill.model.gpt import GPT

    model = GPT(GPTConfig(vocab_size, dropout=0.0))
    tokens_BT = torch.zeros(1, model.config.block_size, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens_BT).sum().backward()
    return counter.get_total_flops() / tokens_BT.numel()


def multiply_matrices(device: torch.device, dtype: torch.dtype, size: int = 4096) -> float:
    """Return the floating-point operations a second of the best of several products of square matrices."""
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product, best = a @ b, math.inf
    for _ in range(3 if device.type == "cpu" else 30):
        started = now(device)
        torch.mm(a, b, out=product)
        best = min(best, now(device) - started)
    return 2 * size**3 / best


def now(device: torch.device) -> float:
    """Return the time in seconds after the device has finished its work."""
    import torch

    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def peak_megabytes(device: torch.device) -> float:
    """Return the peak memory so far in units of 10⁶ bytes: on CUDA of tensors, else of the process."""
    import torch

    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else measure.peak_memory()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
