"""Runs of several real processes: the losses of one process, exact resumption, one line for what goes wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from torchrun import CLASSIC, MODERN, TINY, WITHOUT_DROPOUT, environment, events, losses, quill, state_of, train

from quill.checkpoints.run_folder import find_checkpoint

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun of PyTorch for Windows has no libuv"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process that trains a modern model without dropout."""
    return losses(train(tmp_path_factory.mktemp("alone"), "one", *MODERN, *WITHOUT_DROPOUT))


@pytest.mark.parametrize("flags", [CLASSIC, MODERN + WITHOUT_DROPOUT], ids=["classic", "modern"])
def test_two_processes_have_the_losses_of_one_and_twice_the_same_bits(
    flags: list[str], alone: list[float], tmp_path: Path
) -> None:
    one = alone if flags[0] == MODERN[0] else losses(train(tmp_path, "one", *flags))
    two = losses(train(tmp_path, "two", *flags, processes=2))
    again = losses(train(tmp_path, "again", *flags, processes=2))
    assert len(one) == len(two) == 2 * 50 + 2 * 3
    assert two == pytest.approx(one, abs=1e-5, rel=0) and one != two
    assert again == two and state_of(tmp_path / "again") == state_of(tmp_path / "two")


def test_two_processes_train_on_a_mixture_as_one_does(tmp_path: Path) -> None:
    for name, text in (("a", "to be or not to be\n"), ("b", "Ärger, Öl, Übung\n")):
        (tmp_path / f"{name}.txt").write_text(text * 200, encoding="utf-8")
    flags = ["train", "--dataset=a.txt:0.7,b.txt:0.3", *(flag for flag in TINY[1:] if "dataset" not in flag), *CLASSIC]
    for out, processes in (("one", 1), ("two", 2)):
        done = quill(tmp_path, *flags, f"--out_dir={out}", "--max_iters=50", processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = events(tmp_path / "one"), events(tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), abs=1e-5, rel=0) and len(losses(one)) == 2 * 50 + 2 * 3
    first, second = ([e["val_losses"] for e in each if e["event"] == "evaluation"] for each in (one, two))
    assert [pytest.approx(each, abs=1e-5) for each in first] == second


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_of_three_processes_resumes_to_the_bits_of_one_that_was_not_stopped(
    parallel: str, tmp_path: Path
) -> None:
    flags = [flag.replace("batch_size=4", "batch_size=6") for flag in TINY]
    flags += [*MODERN, "--dropout=0.2", "--lr_decay_iters=50", f"--parallel={parallel}"]
    for out, steps in (("whole", 50), ("parts", 25)):
        done = quill(tmp_path, *flags, f"--out_dir={out}", f"--max_iters={steps}", processes=3)
        assert done.returncode == 0, done.stderr
    done = quill(tmp_path, "train", "--resume=True", "--out_dir=parts", "--max_iters=50", processes=3)
    assert done.returncode == 0, done.stderr
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
    assert losses(events(tmp_path / "parts")) == losses(events(tmp_path / "whole"))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_checkpoint_resumes_with_another_number_of_processes(
    first: int, second: int, alone: list[float], tmp_path: Path
) -> None:
    flags = [*TINY, *MODERN, *WITHOUT_DROPOUT, "--lr_decay_iters=50"]
    done = quill(tmp_path, *flags, "--out_dir=run", "--max_iters=25", processes=first)
    assert done.returncode == 0, done.stderr
    done = quill(tmp_path, "train", "--resume=True", "--out_dir=run", "--max_iters=50", processes=second)
    assert done.returncode == 0, done.stderr
    assert losses(events(tmp_path / "run")) == pytest.approx(alone, abs=1e-5, rel=0)
    nothing_left = quill(tmp_path, "train", "--resume=True", "--out_dir=run", processes=2)
    assert nothing_left.returncode == 0 and nothing_left.stdout.count("nothing left to do") == 1


def test_a_run_of_some_seconds_ends_for_all_processes_together(tmp_path: Path) -> None:
    done = quill(tmp_path, "train", "--dataset=pydoc", "--device=cpu", "--minutes=0.05", processes=3)
    assert done.returncode == 0, done.stderr
    history = events(tmp_path / "out")
    assert history[-1]["event"] == "end" and history[-1]["reason"] in ("finished", "time")
    assert history[0]["device"].endswith("in each of 3 processes")


@contextmanager
def ranks(*commands: list[str], folders: list[Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the processes of one run without torchrun, each with its command and folder."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with ExitStack() as stack:
        started = []
        for rank, (command, folder) in enumerate(zip(commands, folders, strict=True)):
            process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=environment(RANK=str(rank), **place), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, encoding="utf-8",
            )  # fmt: skip
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield started


def complaints(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for the ends, all with exit code 2, and return the lines of Quill on standard error."""
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2] * len(processes), errors
    assert "Traceback" not in "".join(errors)
    return [line for error in errors for line in error.splitlines() if line.startswith("quill")]


PROGRAM = ["-m", "quill"]
OTHER_VERSION = [
    "-c", "import sys, quill; quill.__version__ = '99.0'; from quill.cli.main import main; sys.exit(main())",
]  # fmt: skip


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([[*PROGRAM, *TINY, "--seed=1"], [*PROGRAM, *TINY, "--seed=2"]], "differ in seed: rank 0"),
        ([[*PROGRAM, *TINY], [*OTHER_VERSION, *TINY]], "differ in Quill: rank 0"),
        ([[*PROGRAM, *TINY, "--batchsize=1"]] * 2, "unknown"),
        ([[*PROGRAM, *TINY[:-1], "--dropout=2"]] * 2, "dropout"),
        ([[*PROGRAM, "train", "--dataset=pydoc", "--batch_size=9"]] * 2, "batch_size=9 cannot be divided among 2"),
        ([[*PROGRAM, "train", "--dataset=missing.txt"]] * 2, "missing.txt"),
    ],
    ids=["settings", "versions", "flag", "value", "batch", "text"],
)
def test_what_cannot_run_is_one_line_of_one_process(commands: list[list[str]], message: str, tmp_path: Path) -> None:
    with ranks(*commands, folders=[tmp_path] * 2) as processes:
        lines = complaints(processes)
    assert len(lines) == 1 and message in lines[0], lines


def test_different_texts_are_one_line_and_no_training(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "my.txt").write_text(f"A text of machine {folder.name}.\n" * 100, encoding="utf-8")
    command = [*PROGRAM, "train", "--dataset=my.txt", *TINY[2:]]
    with ranks(command, command, folders=folders) as processes:
        lines = complaints(processes)
    assert len(lines) == 1 and "rank 1" in lines[0] and "has another text than rank 0" in lines[0]
    assert not (tmp_path / "a/out/metrics.jsonl").exists() and not (tmp_path / "b/out").exists()


def until_training(process: subprocess.Popen[str]) -> None:
    """Return once rank 0 has printed the loss of a step."""
    assert process.stdout is not None
    for line in process.stdout:
        if "tokens/s" in line:
            return
    pytest.fail("the run ended before its first step")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_process_saves_the_run_and_ends_all(rank: int, tmp_path: Path) -> None:
    command = [*PROGRAM, *TINY, "--max_iters=100000"]
    with ranks(command, command, folders=[tmp_path] * 2) as processes:
        until_training(processes[0])
        processes[rank].send_signal(signal.SIGTERM)
        ends = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[rank] == 143 and codes[1 - rank] == 130
    assert "saved; resume with: quill train" in ends[0][0] and ends[1][0] == ""
    last = events(tmp_path / "out")[-1]
    assert (last["event"], last["reason"]) == ("end", "interrupted")
    assert find_checkpoint(tmp_path / "out", "last").name == f"step-{last['step']:06}"


KILLED = """
import os, sys
from pathlib import Path
import psutil
import quill

def kill(event):  # called by rank 0 at each evaluation, before its checkpoint is saved
    if event["step"] == 75 and not Path("has-killed").exists():  # torchrun's count includes starts that failed
        Path("has-killed").touch()
        workers = psutil.Process(os.getppid()).children()
        next(each for each in workers if each.environ().get("RANK") == sys.argv[1]).kill()

settings = dict(argument.removeprefix("--").split("=") for argument in sys.argv[2:])
settings = {name: int(value) if value.isdigit() else value for name, value in settings.items()}
quill.run(**settings, dropout=0.2, overwrite=True, callback=kill)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_restarted_and_the_run_ends_with_the_weights_it_would_have_had(
    rank: int, tmp_path: Path
) -> None:
    flags = [*TINY, *MODERN, "--max_iters=100"]
    whole = quill(tmp_path, *flags, "--dropout=0.2", "--out_dir=whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    done = quill(tmp_path, *TINY, "--max_iters=1", "--out_dir=killed")  # an earlier run, which must not be resumed
    assert done.returncode == 0, done.stderr
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    command = [sys.executable, *torchrun, "killed.py", str(rank), *flags[1:], "--out_dir=killed"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8", check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("torchrun has restarted the run: it continues from the last checkpoint in killed") == 1
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "whole")
    assert losses(events(tmp_path / "killed")) == losses(events(tmp_path / "whole"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_one_line(rank: int, tmp_path: Path) -> None:
    command = [*PROGRAM, *TINY, "--max_iters=100000"]
    with ranks(command, command, folders=[tmp_path] * 2) as processes:
        until_training(processes[0])
        processes[rank].kill()
        _, error = processes[1 - rank].communicate()
    assert processes[1 - rank].returncode == 2 and "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("quill")]
    assert len(lines) == 1 and f"rank {1 - rank} lost another process of this run" in lines[0]
