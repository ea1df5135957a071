"""`quill serve`: an HTTP server for trained models, with an API for completions and a page."""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import sys
import threading
from typing import TYPE_CHECKING, Literal

from quill.errors import MissingDependencyError
from quill.process import catch_interrupts, leave, say
from quill.validation import require

if TYPE_CHECKING:
    from quill.cli.arguments import Parser
    from quill.server.served_models import ServedModel

KEY_VARIABLE = "QUILL_API_KEY"
SECONDS_TO_STOP = 2.5  # after which work that cannot be interrupted is given up
PACKAGES = ("starlette", "uvicorn", "msgspec")


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill serve` to the parser."""
    parser.take_bare_word("out_dir")
    add = parser.add_argument
    add(
        "--out_dir",
        type=str,
        help="a run, a .safetensors file, a folder of runs, or tiny; by default this folder, or tiny if it has no run",
    )
    add("--host", type=str, default="127.0.0.1", help="address to listen at; any but this machine's own needs a key")
    add("--port", type=int, default=8000, help="port to listen at; 0 is any free one")
    add(
        "--allowed_host",
        type=str,
        action="append",
        default=[],
        help="another name under which browsers may reach the server (may be repeated)",
    )
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add(
        "--engine",
        type=Literal["auto", "torch", "numba", "cuda"],
        default="auto",
        help="implementation of the model: cuda is fastest on a GPU, numba on a CPU; torch runs anywhere",
    )
    add("--quantization", type=Literal["int8"] | None, help="int8 is faster, with a slightly higher loss")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; the address is printed when requests are accepted."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingDependencyError(f"quill serve needs {', '.join(missing)}: pip install 'quill-gpt[serve]'")
    from quill.server.app import create_app
    from quill.server.connection.running import open_socket, run_app
    from quill.server.connection.security import is_loopback, is_wildcard
    from quill.server.served_models import EngineSettings, ServedModels
    from quill.server.settings import ServerSettings

    require(0 <= arguments.port < 2**16, "port", arguments.port, "from 0 to 65535")
    key = os.environ.get(KEY_VARIABLE) or (None if is_loopback(arguments.host) else secrets.token_urlsafe(24))
    settings = ServerSettings(
        host=arguments.host, port=arguments.port, allowed_hosts=tuple(arguments.allowed_host), key=key
    )
    how = EngineSettings(
        arguments.device, arguments.engine, arguments.quantization, settings.limits.waiting, on_status=note
    )
    served = ServedModels(arguments.out_dir, how)
    app = create_app(served, settings)
    opened = open_socket(settings.host, settings.port)
    name = "localhost" if is_loopback(settings.host) or is_wildcard(settings.host) else settings.host
    address = f"http://{f'[{name}]' if ':' in name else name}:{opened.getsockname()[1]}/"

    def announce() -> None:
        models = [served.get(model_id) for model_id in served.ids()]
        for model in models:
            note(about(model))
        fragment = f"#key={key}" if key and KEY_VARIABLE not in os.environ else ""
        print(f"{address}{fragment}", flush=True)

    def stop_in_time(text: str) -> None:
        say("stopping")
        timer = threading.Timer(SECONDS_TO_STOP, lambda: leave(interrupted()))
        timer.daemon = True
        timer.start()

    with catch_interrupts(stop_in_time) as interrupted:
        run_app(app, opened, interrupted, announce)
    return 130 if interrupted() else 0


def about(model: ServedModel) -> str:
    """Return a line about a model: its id, and what a user may not expect of it."""
    from quill.checkpoints.named import tiny_model

    if model.training:
        return f"{model.id}: still training, served from its newest checkpoint"
    if model.folder == tiny_model():
        return f"{model.id}: the small model that comes with Quill; train your own with quill train --minutes=5"
    return model.id


def note(text: str) -> None:
    """Print a note to standard error."""
    print(f"quill: {text}", file=sys.stderr, flush=True)
