"""Who may use the server, checked before any route, and the headers that protect the page in a browser.

A page of another site must not reach the server through the user's browser. Its address may be made to resolve to this
machine (DNS rebinding), so the Host of a request must be a name of this server. A browser names the page that sends a
request in Origin, so another origin is refused, and no CORS header is ever sent. A form of another page can be sent
without asking, but not with the content type application/json, which every POST needs.

Reference: the Fetch standard, sections 3.2 (Origin) and 3.3 (CORS).
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quill.server.errors import ApiError, headers_too_large
from quill.server.settings import ServerSettings

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Security:
    """ASGI middleware that refuses foreign requests, and adds the security headers to every response.

    `is_public` says which paths need no key.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, is_public: Callable[[str], bool]) -> None:
        self.app, self.settings, self.is_public = app, settings, is_public
        self.names = {"localhost", *map(host_name, settings.allowed_hosts)}
        if not is_wildcard(settings.host):
            self.names.add(host_name(settings.host))
        else:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if size > self.settings.limits.header:
            error = headers_too_large(self.settings.limits)
        else:
            error = self.refusal(scope["method"], scope["path"], Headers(scope=scope))
        app = self.app if error is None else error.response()
        await app(scope, receive, send_with_headers)

    def refusal(self, method: str, path: str, headers: Headers) -> ApiError | None:
        """Return why a request is refused, or None."""
        host = headers.get("host", "")
        if not self.knows(host):
            return ApiError(
                403,
                f"the host {host[:100]!r} is not this server: use localhost, or quill serve --allowed_host=NAME",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit_host(origin) != host.lower():
            return ApiError(403, f"pages of {origin[:100]!r} may not use this server", code="origin_not_allowed")
        key = self.settings.key
        if key is not None and not self.is_public(path):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
                challenge = {"WWW-Authenticate": "Bearer"}
                message = "this server needs its key in the header Authorization: Bearer KEY"
                return ApiError(401, message, code="invalid_api_key", headers=challenge)
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return ApiError(415, "the body must be JSON, sent with the header Content-Type: application/json")
        return None

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this server; the port does not matter.

        An IP address cannot be rebound to another machine, so a server on all interfaces accepts every address.
        """
        name = host_name(host)
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or is_wildcard(self.settings.host)


def host_name(host: str) -> str:
    """Return the name or address in a Host header, in lower case, without port and brackets."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name


def is_wildcard(host: str) -> bool:
    """Return whether this is the address of all interfaces."""
    return host in ("", "0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine can reach this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def urlsplit_host(origin: str) -> str:
    """Return the host and port of an origin, in lower case; an empty text for none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
