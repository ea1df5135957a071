"""Shared by all benchmarks: contestants in turn, medians, peak memory, tables and JSON.

This module does not import PyTorch, so the measuring process stays small. A benchmark is a set of contestants, each a
function that does the work once and returns its figures:

    results = alternate({"quill": run_quill, "nanoGPT": run_nanogpt}, runs=5)
    rows = [[name, figures["tokens_per_second"]] for name, figures in results.items()]
    print_table("Generation", ["contestant", "tokens/s"], rows)
    write_json("generation.json", "generation", results)

Method: Georges, Buytaert & Eeckhout 2007, "Statistically Rigorous Java Performance Evaluation", section 3.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

Figures = Mapping[str, float]
LOAD_BEFORE = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None  # later it would include our own


@dataclass(frozen=True)
class Summary:
    """Results of several runs: the median and the range."""

    median: float
    low: float
    high: float
    runs: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise the values of one or more runs."""
        return cls(statistics.median(values), min(values), max(values), tuple(values))

    def __str__(self) -> str:
        if len(self.runs) == 1:
            return format_number(self.median)
        return f"{format_number(self.median)} ({format_number(self.low)} to {format_number(self.high)})"


def alternate(
    contestants: Mapping[str, Callable[[], Figures]], runs: int, *, quiet: bool = False
) -> dict[str, dict[str, Summary]]:
    """Run the contestants in turn (A B C A B C …) and return summaries of their figures.

    Other load on the machine then affects all of them alike. A warm-up is part of the contestant's function.
    """
    figures: dict[str, list[Figures]] = {name: [] for name in contestants}
    for run in range(runs):
        for name, contestant in contestants.items():
            if not quiet:
                print(f"run {run + 1} of {runs}: {name}", file=sys.stderr, flush=True)
            figures[name].append(contestant())
    return {
        name: {key: Summary.of([figure[key] for figure in each]) for key in each[0]} for name, each in figures.items()
    }


@dataclass(frozen=True)
class ProcessResult:
    """A process that has ended."""

    seconds: float
    """from start to end, the interpreter's start included"""
    peak_memory: int
    """largest resident set, in bytes"""
    output: str
    """standard output"""


def run_process(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    input_text: str = "",
) -> ProcessResult:
    """Run a command in a fresh process and return its time, its peak memory and its output.

    `environment` is added to that of this process. A command that fails is a RuntimeError with the end of its error
    output. The memory is right only while this process is small: on Linux a child starts with its parent's memory.
    """
    words = [os.fspath(word) for word in command]
    started = time.perf_counter()
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    # Both pipes are read while the process runs: a full pipe would stop it.
    said: dict[str, bytes] = {}

    def listen(name: str, stream: IO[bytes]) -> None:
        said[name] = stream.read()

    pipes = (("out", process.stdout), ("err", process.stderr))
    readers = [threading.Thread(target=listen, args=pipe) for pipe in pipes]
    for reader in readers:
        reader.start()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(input_text.encode())
        process.stdin.close()
    try:
        peak = _wait(process)
    except BaseException:  # Ctrl-C ends the child too
        process.kill()
        raise
    seconds = time.perf_counter() - started
    for reader in readers:
        reader.join()
    if process.returncode != 0:
        tail = said["err"].decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"exit code {process.returncode} from {' '.join(words)}\n{tail}")
    return ProcessResult(seconds, peak, said["out"].decode(errors="replace"))


def run_worker(script: str | os.PathLike[str], *arguments: str, **options: Any) -> tuple[dict[str, Any], ProcessResult]:
    """Run a Python script in a fresh process; return the JSON object in its last line, and the process."""
    result = run_process([sys.executable, script, *arguments], **options)
    return json.loads(result.output.strip().splitlines()[-1]), result


def peak_memory() -> int:
    """Return the largest resident set of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss on Linux also counts the parent that this process was forked from; VmHWM does not
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset  # type: ignore[attr-defined]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process and return its largest resident set, in bytes."""
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    import psutil

    peak = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(process.pid)
        while process.poll() is None:
            memory = child.memory_info()
            peak = max(peak, getattr(memory, "peak_wset", memory.rss))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
    process.wait()
    return peak


def hardware() -> dict[str, Any]:
    """Return processor, memory, GPU, and the versions of Python and libraries."""
    memory = None
    with contextlib.suppress(ImportError):
        import psutil

        memory = round(psutil.virtual_memory().total / 2**30, 1)
    model, flags = _processor()
    versions = {}
    for package in ("torch", "numpy", "transformers", "tokenizers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
        "avx512": None if flags is None else "avx512f" in flags,
        "amx": None if flags is None else "amx_tile" in flags,
        "memory_gib": memory,
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
        "load_before": LOAD_BEFORE,
    }


def describe_hardware(facts: Mapping[str, Any] | None = None) -> str:
    """Return the machine in one line; `facts` are those of `hardware()`."""
    facts = hardware() if facts is None else facts
    vector = {True: ", AVX-512", False: ", no AVX-512", None: ""}[facts["avx512"]]
    parts = [
        f"{facts['processor']} ({facts['cores']} cores, {facts['threads']} threads{vector})",
        f"{facts['memory_gib']} GiB" if facts["memory_gib"] else "",
        facts["gpu"] or "no GPU",
        f"Python {facts['python']}",
        f"torch {facts['torch']}" if "torch" in facts else "",
        f"load {facts['load_before']} before" if facts["load_before"] is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _processor() -> tuple[str, set[str] | None]:
    """Return the processor's name and its flags (None if unknown)."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
        return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())
    if sys.platform == "darwin":
        return _ask("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine(), None
    return platform.processor() or platform.machine(), None


def _gpu() -> str | None:
    names = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return ", ".join(names.splitlines()) if names else None


def _ask(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def format_number(value: object) -> str:
    """Return a number with four significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: with lines in a terminal, as aligned columns elsewhere."""
    cells = [[format_number(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.table import Table

            table = Table(title=title, title_justify="left")
            for index, column in enumerate(columns):
                table.add_column(column, justify="right" if index else "left")
            for row in cells:
                table.add_row(*row)
            Console().print(table)
            return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}")
    for first, *rest in [columns, *cells]:
        right = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *right]).rstrip())


def write_json(path: str | os.PathLike[str], benchmark: str, results: Any, **facts: Any) -> None:
    """Write a benchmark's results as JSON, with the machine and any further `facts`."""
    document = {"benchmark": benchmark, "hardware": hardware(), **facts, "results": results}
    text = json.dumps(document, indent=2, ensure_ascii=False, default=_to_json)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _to_json(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def import_file(path: str | os.PathLike[str], name: str) -> types.ModuleType:
    """Import a Python file of another project by its path, under this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look up modules there
    spec.loader.exec_module(module)
    return module


def argument_parser(description: str, *, runs: int | None = 5) -> argparse.ArgumentParser:
    """Return a parser with the flags that benchmarks share: --json, --nanogpt and, unless None, --runs."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    if runs is not None:
        add("--runs", type=int, default=runs, help="turns of each contestant; the median counts (%(default)s)")
    add("--json", metavar="FILE", help="also write the results here")
    add("--nanogpt", metavar="PATH", type=Path, help="a checkout of nanoGPT, to measure it too")
    return parser
