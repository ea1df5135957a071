"""Run the application with uvicorn until a signal arrives."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from quill.errors import ConfigError
from quill.server.connection.protocol import protocol_with
from quill.server.settings import ServerSettings

SECONDS_TO_STOP = 1  # for open requests, after they were told to end


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 is any free one. ConfigError if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(2048)
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host}, port {port}: {reason}; choose another port or host") from None
    opened.setblocking(False)
    return opened


def run_app(
    app: Starlette, opened: socket.socket, should_stop: Callable[[], object], on_start: Callable[[], object]
) -> None:
    """Serve an application at a listening socket until `should_stop()` is true."""
    settings: ServerSettings = app.state.settings
    config = uvicorn.Config(
        app,
        http=protocol_with(settings.limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        h11_max_incomplete_event_size=settings.limits.header,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    _Server(config, app.state.served.stop, should_stop, on_start).run([opened])


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to its caller and ends open streams before it waits for them."""

    def __init__(
        self,
        config: uvicorn.Config,
        end_streams: Callable[[], object],
        should_stop: Callable[[], object],
        on_start: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._end_streams, self._should_stop, self._on_start = end_streams, should_stop, on_start

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or bool(self._should_stop())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_streams()
        await super().shutdown(sockets)
