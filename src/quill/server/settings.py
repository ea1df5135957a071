"""Settings of the server: where it listens, who may use it, and how large a request may be."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """The largest request that is answered. Each limit that is exceeded is a 4xx response that names it."""

    body: int = 2**20
    """bytes of a request's body"""
    header: int = 2**14
    """bytes of a request's first line and headers"""
    depth: int = 16
    """arrays and objects inside each other in a request's JSON"""
    prompt_tokens: int = 2**15
    """tokens of all prompts of one request"""
    prompts: int = 128
    """prompts of one request"""
    texts: int = 128
    """texts that one request generates: prompts times n or best_of"""
    tokens: int = 2**17
    """tokens that one request generates: texts times max_tokens"""
    logprobs: int = 2**19
    """log-probabilities in one answer"""
    stops: int = 16
    """stop strings"""
    stop_length: int = 256
    """characters of a stop string"""
    waiting: int = 256
    """texts that wait for a slot, of all requests together"""
    receive_seconds: float = 20.0
    """seconds from the first byte of a request to its last"""
    connections: int = 1024
    """open connections"""


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, and who may use it."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    """host names, besides those of the loopback interface and `host`, under which browsers may use the server"""
    key: str | None = None
    """the secret that every request but those for the page's files must carry; None on the loopback interface"""
    limits: Limits = field(default_factory=Limits)
