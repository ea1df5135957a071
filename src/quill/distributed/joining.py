"""Join the processes of a run, check that they agree, and report what goes wrong in one line of one process.

Every wait has a limit. The processes first meet at a store, a small key/value server of torchrun or of rank 0, and
compare their versions and settings there. Only then do they connect with each other.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from quill.distributed.environment import Ranks, count_restarts
from quill.distributed.group import ALONE, Group
from quill.errors import ProcessGroupError, QuillError, first_line

if TYPE_CHECKING:
    from torch.distributed import Store

JOIN_SECONDS = 120.0
"""Longest wait for the other processes at the start."""
WAIT_SECONDS = 1800.0
"""Longest wait for another process during a run: rank 0 may prepare a text, evaluate, or save meanwhile."""
SECONDS_TO_FREE = 0.05
"""Pause after the last collective of a run."""
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "TCPStore")
"""Words in the errors of PyTorch when another process is gone or does not answer."""


@contextlib.contextmanager
def joined(ranks: Ranks, flags: Mapping[str, str], seconds: float = JOIN_SECONDS) -> Iterator[Group]:
    """Join the processes of this run for the duration of a block; leave them at its end, also after an error.

    All processes must have the same versions of Quill and PyTorch, and the same `flags`. If they do not meet within
    `seconds`, or another one ends during the block, that is a ProcessGroupError. An error of the block that another
    process has reported already is marked as `reported`.
    """
    if ranks.world_size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    import quill

    store, failed = meet(ranks, seconds), True
    try:
        compare(store, ranks, {"Quill": quill.__version__, "PyTorch": torch.__version__, **flags}, seconds)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        wait = datetime.timedelta(seconds=WAIT_SECONDS)
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=ranks.rank, world_size=ranks.world_size, timeout=wait
        )
        yield Group(ranks)
        failed = False
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            _report(store, "")
            raise
        lost = ProcessGroupError(
            f"rank {ranks.rank} lost another process of this run ({first_line(error, 100)}): "
            f"the last checkpoint is whole; resume from it with resume=True"
        )
        lost.reported = not _report(store, str(lost), peer=True)
        raise lost from error
    except QuillError as error:
        reporting = _report(store, str(error))
        error.reported = not reporting if error.reported is None else error.reported
        raise
    except BaseException:
        _report(store, "")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            # A thread of gloo may still have to free the tensors of the last collective, for which it needs Python. If
            # Python ended first, the process would abort (PyTorch 2.13; with FSDP, whose mesh keeps the threads).
            time.sleep(SECONDS_TO_FREE)
        if failed and ranks.rank == 0 and not _agent_has_store():
            _await_reports(store, ranks.world_size)


def meet(ranks: Ranks, seconds: float) -> Store:
    """Return the store of this run; ProcessGroupError if its port is taken, or nobody answers within `seconds`."""
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = ranks.rank == 0 and not _agent_has_store()
    try:
        if serves:
            _require_free(host, port)
        else:
            _await_server(ranks, host, port, seconds)
        limit = datetime.timedelta(seconds=seconds)
        store = dist.TCPStore(host, port, ranks.world_size, serves, timeout=limit, wait_for_workers=False)
    except RuntimeError as error:
        raise _unreported(
            f"rank {ranks.rank} found no run at MASTER_ADDR={host}, MASTER_PORT={port} within {seconds:g} s "
            f"({first_line(error, 100)}): check both"
        ) from error
    return dist.PrefixStore(f"quill/{count_restarts()}", store)


def compare(store: Store, ranks: Ranks, facts: Mapping[str, str], seconds: float) -> None:
    """Raise ProcessGroupError, in rank 0, if a process has not come within `seconds`, or has other facts.

    In the others the error is marked as reported.
    """
    mine = {"machine": socket.gethostname(), **facts}
    store.set(f"facts/{ranks.rank}", json.dumps(mine))
    limit = datetime.timedelta(seconds=seconds)
    if ranks.rank:
        try:
            store.wait(["verdict"], datetime.timedelta(seconds=2 * seconds))
            verdict = store.get("verdict").decode()
        except RuntimeError as error:
            raise _reported("rank 0 has ended before all processes had come") from error
        if verdict != "agreed":
            raise _reported(verdict)
        return
    verdict = ""
    for rank in range(1, ranks.world_size):
        try:
            store.wait([f"facts/{rank}"], limit)
        except RuntimeError:
            verdict = f"rank {rank} of {ranks.world_size} has not come within {seconds:g} s: start all processes"
            break
        if verdict := difference(mine, json.loads(store.get(f"facts/{rank}")), rank):
            break
    store.set("verdict", verdict or "agreed")
    if verdict:
        raise _unreported(verdict)


def difference(mine: Mapping[str, str], theirs: Mapping[str, str], rank: int) -> str:
    """Return how the facts of a rank differ from those of rank 0, and what to do; "" if they agree."""
    for name in [name for name in {**mine, **theirs} if name != "machine"]:
        here, there = mine.get(name, "nothing"), theirs.get(name, "nothing")
        if here != there:
            return (
                f"the processes differ in {name}: rank 0 ({mine['machine']}) has {here}, rank {rank} "
                f"({theirs['machine']}) has {there}; start all of them with the same versions and flags"
            )
    return ""


def _await_server(ranks: Ranks, host: str, port: int, seconds: float) -> None:
    """Wait until something listens at the address. PyTorch would print a warning for each try."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.1 > deadline:
                raise _unreported(
                    f"rank {ranks.rank} cannot reach MASTER_ADDR={host}, MASTER_PORT={port} "
                    f"({error.strerror or first_line(error)}; tried for {seconds:g} s): "
                    f"check both, and that rank 0 is running"
                ) from error
        time.sleep(0.1)


def _require_free(host: str, port: int) -> None:
    """Raise ProcessGroupError if rank 0 cannot listen on its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise _unreported(f"MASTER_PORT={port} {why} on {host}: choose another port") from error


def _agent_has_store() -> bool:
    """Return whether the store is torchrun's, which outlives rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _await_reports(store: Store, world_size: int, seconds: float = 5.0) -> None:
    """Keep rank 0's store alive until all processes that came know of the error, for a few seconds at most."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(RuntimeError):
        came = sum(store.check([f"facts/{rank}"]) for rank in range(world_size))
        while store.add("reports", 0) < came and time.monotonic() < deadline:
            time.sleep(0.02)


def _report(store: Store, message: str, peer: bool = False) -> bool:
    """Return whether this process has to report its error: another one may have reported the same.

    With `peer` the error is only that another process is gone, which any error of another process explains.
    """
    try:
        first = store.compare_set("error", "", message or "a traceback").decode()
        mine = store.add("reports", 1) == 1
    except RuntimeError:  # rank 0 was killed together with its store
        return True
    return mine or (first != message and not peer)


def _unreported(message: str) -> ProcessGroupError:
    error = ProcessGroupError(message)
    error.reported = False
    return error


def _reported(message: str) -> ProcessGroupError:
    error = ProcessGroupError(message)
    error.reported = True
    return error
