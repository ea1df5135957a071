"""`quill serve` at full size: sixteen streams at once, and the time to the first token beside slow connections.

    python benchmarks/serving.py --json=serving.json

    streams    sixteen clients that read a text of 240 tokens each, all tokens counted: the server, the engine alone
               (without HTTP, in a process of its own), and llama.cpp's server with the same weights, where it is
               installed (`pip install xllamacpp gguf`)
    slow       the time to the first token of one client after another, alone and beside 200 connections of which each
               sends a byte ten times a second

The clients are in the measuring process and share the cores with the servers. Contestants take turns.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import SUPPRESS, Namespace
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import generators
from generators import CONFIG, TEMPERATURE, TOP_K
from measure import Figures, alternate, argument_parser, describe_hardware, print_table, run_worker, write_json

from quill.checkpoints.run_folder import save_checkpoint
from quill.tokenizers.char import CharTokenizer

TEXTS, PROMPT, NEW_TOKENS = 16, 16, 240
SLOW, REQUESTS = 200, 400
DRIP_SECONDS = 0.1  # between two bytes of a slow connection


def main() -> int:
    """Measure, print the tables and write JSON; or run as a worker, with `--worker`."""
    parser = argument_parser("quill serve at full size.", runs=5)
    parser.add_argument("--only", choices=("streams", "slow"), help="the part to measure (both)")
    parser.add_argument("--new_tokens", type=int, default=NEW_TOKENS, help="tokens of a text (%(default)s)")
    parser.add_argument("--worker", choices=("engine", "llama", "drip"), help=SUPPRESS)
    parser.add_argument("--address", help=SUPPRESS)
    parser.add_argument("--count", type=int, help=SUPPRESS)
    parser.add_argument("--folder", help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        workers = {"engine": run_engine, "llama": serve_llama, "drip": lambda given: drip(given.address, given.count)}
        workers[arguments.worker](arguments)
        return 0
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        run = Path(folder, "out")
        tokenizer = CharTokenizer("\n" + "".join(map(chr, range(ord(" "), ord(" ") + CONFIG.vocab_size - 1))))
        save_checkpoint(
            run, generators.full_size_model(), tokenizer, step=1, val_loss=1.0, best=True, training_tensors={},
            training_metadata={},
        )  # fmt: skip
        quill = stack.enter_context(server(sys.executable, "-m", "quill", "serve", run, "--port=0", "--device=cpu"))
        stream(quill, arguments.new_tokens)  # loads the model, and compiles its step where that was never done
        if arguments.only != "slow":
            results["streams"] = measure_streams(quill, run, arguments, stack)
        if arguments.only != "streams":
            measured = {
                "quiet": partial(first_tokens, quill, 0),
                f"{SLOW} slow connections": partial(first_tokens, quill, SLOW),
            }
            results["slow"] = alternate(measured, arguments.runs)
    print(describe_hardware())
    report(results)
    if arguments.json:
        write_json(arguments.json, "serving", results)
    return 0


def measure_streams(quill: str, run: Path, arguments: Namespace, stack: ExitStack) -> dict[str, Any]:
    """Measure tokens a second of sixteen texts."""
    flags = [f"--folder={run}", f"--new_tokens={arguments.new_tokens}"]
    contestants = {
        "engine alone": lambda: run_worker(__file__, "--worker=engine", *flags)[0],
        "quill serve": partial(stream, quill, arguments.new_tokens),
    }
    if all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf")):
        llama = stack.enter_context(server(sys.executable, __file__, "--worker=llama", *flags))
        stream(llama, arguments.new_tokens)
        contestants["llama.cpp's server"] = partial(stream, llama, arguments.new_tokens)
    return alternate(contestants, arguments.runs)


def report(results: dict[str, Any]) -> None:
    """Print a table of each part."""
    if streams := results.get("streams"):
        engine = streams["engine alone"]["tokens_per_second"].median
        speeds = {name: figures["tokens_per_second"] for name, figures in streams.items()}
        rows = [[name, speed, speed.median / engine] for name, speed in speeds.items()]
        print_table(f"Streams: {TEXTS} texts at once", ["contestant", "tokens/s", "of the engine alone"], rows)
    if slow := results.get("slow"):
        quiet = slow["quiet"]["p95_seconds"].median
        rows = [
            [name, figures["median_seconds"], figures["p95_seconds"], figures["p95_seconds"].median / quiet]
            for name, figures in slow.items()
        ]
        columns = ["beside", "time to first token, s: median", "95th percentile", "of the quiet one"]
        print_table("Slow connections", columns, rows)


@contextmanager
def server(*words: str | Path) -> Iterator[str]:
    """Run a command that prints its address and serves; yield the address."""
    with subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http"), "the server did not start"
            yield address
        finally:
            process.terminate()


def connect(address: str) -> socket.socket:
    """Return a connection to a server."""
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname or "", parts.port or 80))


def request(new_tokens: int, seed: int) -> bytes:
    """Return a request for a text after a random prompt."""
    prompt = [random.Random(f"{seed} {time.time()}").randrange(CONFIG.vocab_size) for _ in range(PROMPT)]
    how = {"temperature": TEMPERATURE, "top_k": TOP_K, "seed": seed, "stream": True}
    fields = {"prompt": prompt, "max_tokens": new_tokens, "stream_options": {"include_usage": True}, **how}
    body = json.dumps(fields | {"ignore_eos": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def stream(address: str, new_tokens: int) -> Figures:
    """Read all texts at once, and return tokens a second from the first request to the last byte."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        answers: dict[socket.socket, bytearray] = {}
        started = time.perf_counter()
        for seed in range(TEXTS):
            client = stack.enter_context(connect(address))
            client.sendall(request(new_tokens, seed))
            selector.register(client, selectors.EVENT_READ)
            answers[client] = bytearray()
        while selector.get_map():
            for key, _ in selector.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                if more := client.recv(2**16):
                    answers[client] += more
                else:
                    selector.unregister(client)
        seconds = time.perf_counter() - started
    tokens = [tokens_of(bytes(answer)) for answer in answers.values()]
    assert tokens == [new_tokens] * TEXTS, tokens
    return {"tokens_per_second": sum(tokens) / seconds}


def tokens_of(answer: bytes) -> int:
    """Return how many tokens the server says that it has generated."""
    assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
    usages = [line for line in answer.splitlines() if line.startswith(b"data: {") and b'"completion_tokens"' in line]
    return int(json.loads(usages[-1][6:])["usage"]["completion_tokens"])


def first_tokens(address: str, slow: int) -> Figures:
    """Return the time to the first token, of one request after another, beside slow connections."""
    with dripping(address, slow):
        seconds = []
        for seed in range(REQUESTS):
            with connect(address) as client:
                started = time.perf_counter()
                client.sendall(request(1, seed))
                answer = b""
                while b"data: {" not in answer:
                    more = client.recv(2**16)
                    assert more, answer
                    answer += more
                seconds.append(time.perf_counter() - started)
    seconds.sort()
    return {"median_seconds": seconds[len(seconds) // 2], "p95_seconds": seconds[int(0.95 * len(seconds))]}


@contextmanager
def dripping(address: str, count: int) -> Iterator[None]:
    """Keep connections open that send a request byte by byte, in a process of their own."""
    if not count:
        yield
        return
    words = [sys.executable, __file__, "--worker=drip", f"--address={address}", f"--count={count}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            yield
        finally:
            process.kill()


# The functions below run in the workers.


def drip(address: str, count: int) -> None:
    """Open connections, and send a byte of each in turn, until killed. One that the server closes is opened again."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    clients = deque((connect(address), 0) for _ in range(count))
    print("open", flush=True)
    while True:
        client, sent = clients.popleft()
        try:
            client.sendall(head[sent : sent + 1] or b" ")
            clients.append((client, sent + 1))
        except OSError:
            client.close()
            clients.append((connect(address), 0))
        time.sleep(DRIP_SECONDS / count)


def run_engine(arguments: Namespace) -> None:
    """Generate the same texts without a server, twice, and print the speed of the second time."""
    from quill.generation.language_model import load

    generate = generators.engine_generator(load(arguments.folder, device="cpu").batch.engine)
    prompts = [[random.randrange(CONFIG.vocab_size) for _ in range(PROMPT)] for _ in range(TEXTS)]
    generate(prompts, 8)
    started = time.perf_counter()
    generate(prompts, arguments.new_tokens)
    seconds = time.perf_counter() - started
    print(json.dumps({"tokens_per_second": TEXTS * arguments.new_tokens / seconds}))


def serve_llama(arguments: Namespace) -> None:
    """Serve the same weights with llama.cpp, with a slot for each text and a thread for each core, until killed."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # optional

    file = generators.write_gguf(generators.full_size_model(), "F32", Path(arguments.folder, "full-size.gguf"))
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_parallel, settings.n_ctx = TEXTS, TEXTS * CONFIG.block_size
    settings.n_batch = settings.n_ubatch = 512
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = generators.torch.get_num_threads()
    settings.warmup = True
    running = xllamacpp.Server(settings)
    print(running.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
