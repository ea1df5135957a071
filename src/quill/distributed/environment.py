"""The place of this process in a run of several processes, from the environment variables that torchrun sets.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables. `quill --help` imports this module, so it
imports neither PyTorch nor dataclasses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from quill.errors import ConfigError, ProcessGroupError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ADVICE = "start the processes with torchrun, or unset these variables"


class Ranks(NamedTuple):
    """The place of a process among those of its run. Rank 0 decides, prints and writes all files."""

    rank: int = 0
    world_size: int = 1
    """number of processes"""
    local_rank: int = 0
    """place among the processes of this machine, which selects a GPU"""


ONE_PROCESS = Ranks()


def read_ranks(environ: Mapping[str, str] | None = None) -> Ranks:
    """Return the place of this process; rank 0 of 1 without torchrun. Impossible values are a ProcessGroupError."""
    environ = os.environ if environ is None else environ
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return ONE_PROCESS
    if environ.get("WORLD_SIZE") == "1" and environ.get("RANK") == "0":
        return ONE_PROCESS
    for name in NEEDED:
        if not environ.get(name):
            other = "RANK" if name != "RANK" else "WORLD_SIZE"
            raise _invalid(f"{other} is set and {name} is not: {ADVICE}")
    rank, world_size = _whole(environ, "RANK"), _whole(environ, "WORLD_SIZE", least=1)
    if rank >= world_size:
        raise _invalid(f"RANK={rank} must be less than WORLD_SIZE={world_size}: {ADVICE}")
    port = _whole(environ, "MASTER_PORT", least=1)
    if port > 65535:
        raise _invalid(f"MASTER_PORT={port} must be at most 65535: choose another port")
    return Ranks(rank, world_size, _whole(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else rank)


def _whole(environ: Mapping[str, str], name: str, least: int = 0) -> int:
    value = environ[name].strip()
    if not value.isdecimal() or int(value) < least:
        raise _invalid(f"{name}={environ[name]!r} must be a whole number, {least} or more: {ADVICE}")
    return int(value)


def _invalid(message: str) -> ProcessGroupError:
    error = ProcessGroupError(message)
    error.reported = False  # whatever rank this process believes to have
    return error


def is_first(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether this process is rank 0, or its environment names no rank."""
    rank = (os.environ if environ is None else environ).get("RANK", "0").strip()
    return not rank.isdecimal() or int(rank) == 0


def count_restarts(environ: Mapping[str, str] | None = None) -> int:
    """Return how often torchrun has restarted the processes of this run (`--max-restarts`)."""
    count = (os.environ if environ is None else environ).get("TORCHELASTIC_RESTART_COUNT", "0").strip()
    return int(count) if count.isdecimal() else 0


def part_of(count: int, ranks: Ranks) -> slice:
    """Return which of `count` windows of a batch this rank takes: the parts of all ranks are the whole, in order."""
    size = count // ranks.world_size
    return slice(ranks.rank * size, (ranks.rank + 1) * size)


def require_divisible(batch_size: int, world_size: int) -> None:
    """Raise ConfigError with the nearest possible values unless a micro-batch can be divided among all processes."""
    below = batch_size // world_size * world_size
    if below == batch_size:
        return
    nearest = f"{below} or {below + world_size}" if below else str(world_size)
    raise ConfigError(f"batch_size={batch_size} cannot be divided among {world_size} processes: use {nearest}")


def next_divisible(batch_size: int, world_size: int) -> int:
    """Return the smallest batch size of at least this one that can be divided among all processes."""
    return -(-batch_size // world_size) * world_size
