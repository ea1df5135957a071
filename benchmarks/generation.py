"""Speed of generation at full size: Quill's engines and other projects, in turn in the same process.

    python benchmarks/generation.py --nanogpt=PATH --json=generation.json --plot=generation.png

    one        one text of 240 tokens after a prompt of 16: inside the context of 256
    long       one text of 500 tokens: Quill recomputes half a window now and then, nanoGPT a whole one for each token,
               and transformers, which cannot exceed its positions, gets a longer table of them
    sixteen    sixteen texts at once, all tokens counted (without nanoGPT, which would take minutes)
    prefill    a prompt of 255 tokens, until the first token
    shell      the whole process that generates one character, with everything in caches
    memory     bytes of the weights as each engine reads them, and the speed of memory: no engine can generate more
               tokens a second than its weights can be read

    python benchmarks/generation.py --device=cuda --nanogpt=PATH --json=generation-cuda.json

measures `one`, `sixteen` and `prefill` on a GPU instead, with the contestants of gpu_generators.py, and compares Quill
with nanoGPT and with a step compiled as in gpt-fast. Without a GPU it ends with exit code 2.

Each turn has new random prompts, so that no contestant can cache one. transformers takes part where it is installed,
nanoGPT with --nanogpt, llama.cpp where llama-cpp-python and gguf are installed.
"""

from __future__ import annotations

import importlib.util
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import generators
import numpy as np
import torch
from generators import CONFIG, TOP_K, Generate
from measure import Figures, alternate, argument_parser, describe_hardware, print_table, run_process, write_json
from startup import quill_command

from quill.checkpoints.run_folder import save_checkpoint
from quill.engines.make import make_engine
from quill.engines.numba_engine import NumbaEngine
from quill.model.gpt import GPT
from quill.tokenizers.char import CharTokenizer

CASES = {"one": (1, 16, 240), "long": (1, 16, 500), "sixteen": (16, 16, 240), "prefill": (1, 255, 1)}
LABELS = {"Quill": "Quill, float32", "Quill, torch": "Quill, torch engine", "transformers": "Hugging Face transformers"}
PARTS = {"cpu": (*CASES, "shell", "memory"), "cuda": ("one", "sixteen", "prefill")}


def main() -> int:
    """Measure the parts, print a table for each, and write JSON and the picture."""
    parser = argument_parser("Speed of generation at full size.", runs=5)
    parser.add_argument("--only", help="parts to measure (all)")
    parser.add_argument("--device", choices=PARTS, default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="also draw the speeds of one text into this PNG")
    arguments = parser.parse_args()
    known = PARTS[arguments.device]
    parts = arguments.only.split(",") if arguments.only else list(known)
    if unknown := [part for part in parts if part not in known]:
        parser.error(f"--only: there is no {unknown[0]!r}, only {', '.join(known)}")
    if arguments.nanogpt and not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt={arguments.nanogpt} has no model.py: give a checkout of nanoGPT")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("--device=cuda: PyTorch finds no CUDA device here; run this where there is one", file=sys.stderr)
        return 2
    print(describe_hardware())
    measure = measure_gpu if arguments.device == "cuda" else measure_cpu
    results = measure(parts, arguments.nanogpt, arguments.runs)
    if arguments.plot and "one" in results and arguments.device == "cpu":
        speeds = {name: figures["tokens_per_second"].median for name, figures in results["one"].items()}
        draw(speeds, arguments.plot)
    if arguments.json:
        write_json(arguments.json, "generation", results, torch_threads=torch.get_num_threads(), runs=arguments.runs)
    return 0


def measure_cpu(parts: list[str], nanogpt: Path | None, runs: int) -> dict[str, Any]:
    """Print a table of each part on a CPU."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        model = generators.full_size_model()
        if "memory" in parts:  # first, before others fill the caches
            results["memory"] = measure_memory(model)
        contestants = cpu_contestants(model, nanogpt, Path(folder)) if set(parts) & set(CASES) else {}
        for part in [part for part in CASES if part in parts]:
            results[part] = measure_generation(part, contestants, runs)
        if "shell" in parts:
            results["shell"] = measure_shell(model, nanogpt, Path(folder), runs)
    return results


def cpu_contestants(model: GPT, nanogpt: Path | None, folder: Path) -> dict[str, Generate]:
    """Return the contestants available here."""
    contestants = {
        "Quill": generators.quill_generator(model, "numba"),
        "Quill, int8": generators.quill_generator(model, "numba", "int8"),
        "Quill, torch": generators.quill_generator(model, "torch"),
    }
    if generators.has_llama():
        for kind in ("F32", "Q8_0"):
            contestants[f"llama.cpp {kind}"] = generators.llama_generator(model, kind, folder, torch.get_num_threads())
    if importlib.util.find_spec("transformers"):
        contestants["transformers"] = generators.transformers_generator(model, 520)
    if nanogpt:
        contestants["nanoGPT"] = generators.nanogpt_generator(nanogpt)
    return contestants


def measure_gpu(parts: list[str], nanogpt: Path | None, runs: int) -> dict[str, Any]:
    """Print a table of each part on a GPU, and Quill's speed as a multiple of the others' with one text."""
    import gpu_generators

    results: dict[str, Any] = {}
    model = generators.full_size_model().to("cuda")
    ours = ("Quill", "Quill, compiled")
    for part in parts:
        contestants = gpu_generators.gpu_contestants(model, CASES[part][0], nanogpt)
        results[part] = measure_generation(part, contestants, runs, ours, warm_up=CASES[part][2])
    speeds = {name: figures["tokens_per_second"].median for name, figures in results.get("one", {}).items()}
    for peer, target in gpu_generators.TARGETS.items():
        if peer in speeds:
            ratios = results[f"× {peer}"] = {name: speeds[name] / speeds[peer] for name in ours}
            reached = ", ".join(f"{name}: {ratio:.2f} ×" for name, ratio in ratios.items())
            print(f"one text, against {peer}: {reached} (target: at least {target} ×)")
    return results


def measure_generation(
    part: str,
    contestants: dict[str, Generate],
    runs: int,
    ours: Sequence[str] = ("Quill", "Quill, int8"),
    warm_up: int = 8,
) -> dict[str, Any]:
    """Measure the contestants that support this part; print tokens a second, or milliseconds to the first token."""
    texts, prompt, new_tokens = CASES[part]
    fits = prompt + new_tokens <= CONFIG.block_size and texts == 1  # all that llama_generator supports
    work = {
        name: timed(generate, texts, prompt, new_tokens, warm_up)
        for name, generate in contestants.items()
        if fits or not (name.startswith("llama.cpp") or (texts > 1 and name == "nanoGPT"))
    }
    print(part, file=sys.stderr, flush=True)
    results = alternate(work, runs, quiet=True)
    figure = "milliseconds" if part == "prefill" else "tokens_per_second"
    speeds = {name: figures[figure] for name, figures in results.items()}
    rows = []
    for name, speed in speeds.items():
        ratios = [speeds[our].median / speed.median for our in ours]
        rows.append([name, str(speed), *(f"{1 / r if part == 'prefill' else r:.2f}" for r in ratios)])
    asked = f"{texts} × {new_tokens} new tokens" if part != "prefill" else "the first token after 255"
    title = f"{part}: {asked}, {CONFIG.n_layer} × {CONFIG.n_embd}, top-k {TOP_K}"
    columns = ["contestant", f"{figure.replace('_', ' ')}: median (range)", "Quill is × as fast", ours[1]]
    print_table(title, columns, rows)
    return results


def timed(generate: Generate, texts: int, prompt: int, new_tokens: int, warm_up: int) -> Callable[[], Figures]:
    """Return one turn of a contestant: a short warm-up that does not count, then the work."""

    def prompts(length: int) -> list[list[int]]:
        return [[random.randrange(CONFIG.vocab_size) for _ in range(length)] for _ in range(texts)]

    def turn() -> Figures:
        generate(prompts(prompt), min(warm_up, new_tokens))
        mine = prompts(prompt)
        started = time.perf_counter()
        generate(mine, new_tokens)
        seconds = time.perf_counter() - started
        return {"tokens_per_second": texts * new_tokens / seconds, "milliseconds": seconds * 1e3}

    return turn


def measure_memory(model: GPT) -> dict[str, Any]:
    """Print the bytes of the weights, and how many times a second that much memory can be read."""
    exact = sum(parameter.numel() * 4 for parameter in model.parameters())
    rows, results = [], {}
    for weights, quantization in (("fp32", None), ("int8", "int8")):
        engine = make_engine(model, "numba", quantization=quantization)
        assert isinstance(engine, NumbaEngine)
        data = torch.ones(engine.weight_bytes // 4)
        seconds = []
        for _ in range(60):
            started = time.perf_counter()
            data.sum()
            seconds.append(time.perf_counter() - started)
        limit = 1 / float(np.median(seconds))
        results[weights] = {
            "bytes": engine.weight_bytes,
            "share": engine.weight_bytes / exact,
            "reads_per_second": limit,
        }
        gigabytes = engine.weight_bytes * limit / 1e9
        rows.append(
            [weights, f"{engine.weight_bytes / 1e6:.2f}", f"{engine.weight_bytes / exact:.3f}", gigabytes, limit]
        )
    columns = ["weights", "MB", "of fp32", "GB/s that a sum reads", "limit, tokens/s"]
    print_table("memory: the weights of one token", columns, rows)
    return results


def measure_shell(model: GPT, nanogpt: Path | None, folder: Path, runs: int) -> dict[str, Any]:
    """Print the time of whole processes that generate one character."""
    tokenizer = CharTokenizer("\n" + "".join(map(chr, range(ord(" "), ord(" ") + 64))))
    out_dir = folder / "out"
    save_checkpoint(
        out_dir, model, tokenizer, step=1, val_loss=1.0, best=True, training_tensors={}, training_metadata={}
    )
    write = ["generate", f"--out_dir={out_dir}", "--prompt=K", "--max_new_tokens=1"]
    commands = {
        "Quill": [*quill_command(), *write],
        "Quill, int8": [*quill_command(), *write, "--quantization=int8"],
        "Quill, torch": [*quill_command(), *write, "--engine=torch"],
    }
    if nanogpt:
        theirs = folder / "nanogpt"
        theirs.mkdir()
        letters = tokenizer.decode(range(CONFIG.vocab_size))
        meta = {"stoi": {c: i for i, c in enumerate(letters)}, "itos": dict(enumerate(letters))}
        (theirs / "meta.pkl").write_bytes(pickle.dumps(meta))
        state = {
            "model": generators.nanogpt_model(nanogpt).state_dict(),
            "model_args": generators.nanogpt_shape(),
            "config": {"dataset": str(theirs)},
        }
        torch.save(state, theirs / "ckpt.pt")
        flags = [f"--out_dir={theirs}", "--device=cpu", "--num_samples=1", "--max_new_tokens=1", "--start=K"]
        commands["nanoGPT"] = [sys.executable, "sample.py", *flags, "--dtype=float32"]
    folders = {"nanoGPT": nanogpt}
    turns = {name: shell_turn(command, folders.get(name)) for name, command in commands.items()}
    for once in turns.values():
        once()  # fills the caches
    print("shell", file=sys.stderr, flush=True)
    results = alternate(turns, runs, quiet=True)
    ours = results["Quill"]["seconds"].median
    rows = [[name, str(f["seconds"]), f"{f['seconds'].median / ours:.2f}"] for name, f in results.items()]
    print_table(
        "shell: a process that generates one character",
        ["command", "seconds: median (range)", "Quill is × as fast"],
        rows,
    )
    return results


def shell_turn(command: list[str], cwd: Path | None) -> Callable[[], Figures]:
    """Return one turn of a whole process."""
    return lambda: {"seconds": run_process(command, cwd=cwd).seconds}


def draw(speeds: dict[str, float], file: str) -> None:
    """Draw tokens a second for one text as bars, the fastest first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(speeds, key=lambda name: speeds[name])
    labels = [LABELS.get(name, name) for name in names]
    figure = Figure(figsize=(7.5, 0.9 + 0.42 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = ["#d95f02" if name.startswith("Quill") else "#8da0cb" for name in names]
    bars = axes.barh(labels, [speeds[name] for name in names], color=colors)
    axes.bar_label(bars, [f"{speeds[name]:,.0f}" for name in names], padding=4)
    axes.set_title("Generating one text of 240 tokens, 10.65 million parameters, CPU", loc="left", fontsize=11)
    axes.set_xlabel("tokens a second (median)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
