"""Two nodes, each with its own agent of torchrun, folder and copy of the text; one is cut off, and both start again."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from torchrun import MODERN, TINY, environment, events, losses, quill, state_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun of PyTorch for Windows has no libuv"),
]

FLAGS = [*TINY, *MODERN, "--dropout=0.2", "--max_iters=200"]


class Node:
    """An agent of torchrun with one process of the run."""

    def __init__(self, folder: Path, words: list[str], port: int, is_host: bool) -> None:
        folder.mkdir(exist_ok=True)
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
        torchrun += [f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=quill", "--max-restarts=0"]
        torchrun += [f"--rdzv_conf=is_host={int(is_host)}"]
        command = [sys.executable, *torchrun, "-m", "quill", *words]
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            while not self.lines or self.lines[-1]:
                line = stdout.readline()  # "" at the end
                with self.changed:
                    self.lines.append(line)
                    self.changed.notify_all()

    def wait_for(self, text: str) -> None:
        """Return once a line with this text was printed."""
        with self.changed:
            while not any(text in line for line in self.lines):
                assert "" not in self.lines, "".join(self.lines)
                self.changed.wait()

    def end(self) -> str:
        """Wait until the agent has ended, and return what was printed."""
        self.process.wait()
        self.reader.join()
        return "".join(self.lines)

    def cut_off(self) -> None:
        """Kill the agent and its process, as a power cut does."""
        agent = psutil.Process(self.process.pid)
        for process in [*agent.children(recursive=True), agent]:  # torchrun gives each of its processes a session
            process.kill()
        self.end()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def nodes(tmp_path: Path, port: int) -> Iterator[ExitStack]:
    """Ends what is still running after a test that failed."""
    with ExitStack() as stack:
        yield stack


def start(nodes: ExitStack, tmp_path: Path, words: list[str], port: int) -> tuple[Node, Node]:
    first, second = (Node(tmp_path / name, words, port, is_host=name == "a") for name in ("a", "b"))
    for node in (first, second):
        nodes.callback(lambda node=node: node.process.poll() is None and node.cut_off())
    return first, second


def test_a_run_of_two_nodes_one_of_which_is_cut_off_resumes_to_the_bits_of_a_run_on_one_node(
    tmp_path: Path, port: int, nodes: ExitStack
) -> None:
    whole = quill(tmp_path, *FLAGS, "--out_dir=whole", processes=2)  # two processes of one node
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "run"
    first, second = start(nodes, tmp_path, [*FLAGS, f"--out_dir={out}"], port)
    first.wait_for("step  50 of 200")  # the checkpoint of step 25 is saved, and perhaps that of 50
    second.cut_off()
    printed = first.end()
    assert printed.count("rank 0 lost another process of this run") == 1 and first.process.returncode != 0, printed
    both = start(nodes, tmp_path, ["train", "--resume=True", f"--out_dir={out}"], port)
    ends = [node.end() for node in both]
    assert [node.process.returncode for node in both] == [0, 0], ends
    assert state_of(out) == state_of(tmp_path / "whole")
    assert losses(events(out)) == losses(events(tmp_path / "whole"))
