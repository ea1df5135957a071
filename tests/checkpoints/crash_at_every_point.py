"""Processes that kill themselves at each point where the system is asked for something. Run by test_crashes.py.

save: for n = 1, 2, … a forked child saves the next checkpoint of a run and ends itself by SIGKILL at its n-th request
to the system (before and after each fsync; at each opened, made, renamed or deleted file), until one comes to its end.
With a stride, n grows by it.
Prints a JSON line for each: the number of the save, n, and what the folder holds after the crash, after cleaning up,
and after the next save.

run: the same for some points of a whole run, which is then resumed, or started again where nothing was saved. Prints a
JSON line for each: n, and what the finished folder holds; the first line is of a run that was never killed.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import quill
from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import clean_run_folder, find_checkpoint, holds_run, load_checkpoint, save_checkpoint
from quill.errors import CheckpointError
from quill.files import is_draft
from quill.model.build import build_model
from quill.model.config import GPTConfig
from quill.tokenizers.char import CharTokenizer

TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def save(out: Path, step: int, best: bool) -> None:
    torch.manual_seed(step)
    model = build_model(GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4))
    progress = {"step": step, "val_loss": 2.0, "best_val_loss": 2.0, "best_step": step if best else 3}
    save_checkpoint(
        out, model, CharTokenizer("abc"), step=step, val_loss=2.0, best=best,
        training_tensors={"rng.cpu": torch.get_rng_state()}, training_metadata={"progress": progress},
    )  # fmt: skip


def die_at(n: int, inside: Path) -> Iterator[int]:
    """End this process at its n-th request to the system that concerns the folder, fsync included; count them."""
    points = iter(range(1, 100_000))

    def count() -> None:
        if next(points) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event: str, arguments: tuple) -> None:
        if event in EVENTS and arguments and str(inside) in str(arguments[0]):
            count()

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count()
        fsync(descriptor)
        count()

    os.fsync = counted_fsync
    sys.addaudithook(on_event)
    return points


def count_points(work: Callable[[], None], inside: Path) -> int:
    """Return how many requests to the system some work makes in a folder, counted in a process of its own."""
    read, write = os.pipe()
    if os.fork() == 0:
        points = die_at(-1, inside)
        work()
        os.write(write, str(next(points)).encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding="ascii") as pipe:
        return int(pipe.read())


def holds(out: Path) -> list:
    """Return what a user finds: the steps of best and last, None where there is no checkpoint at all."""
    try:
        found = [load_checkpoint(out, checkpoint=which).step for which in ("best", "last")]  # every byte is checked
    except CheckpointError as error:
        return [str(error)]
    assert found == [int(find_checkpoint(out, which).name[5:]) for which in ("best", "last")]
    return found


def names(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.parent.name != "step" or is_draft(path))


def crash_in_saves(folder: Path, saves: list[tuple[list[int], bool]], stride: int) -> None:
    for number, (earlier, best) in enumerate(saves):
        crash_in_one_save(number, folder / str(number) / "out", earlier, best, stride)


def crash_in_one_save(number: int, out: Path, earlier: list[int], best: bool, stride: int) -> None:
    template = out.with_name("template")
    template.mkdir(parents=True)
    for step in earlier:
        save(template, step, best=step == 3)
    finished = False
    n = 1 - stride
    while not finished:
        n += stride
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(template, out)
        child = os.fork()
        if child == 0:
            die_at(n, out)
            save(out, 9, best)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        finished = status == 0
        assert finished or os.WTERMSIG(status) == signal.SIGKILL
        line = {"save": number, "n": n, "finished": finished, "after": holds(out)}
        clean_run_folder(out)
        line |= {"cleaned": holds(out), "files": names(out)}
        if line["cleaned"][-1] != 9:
            save(out, 9, best)
        save(out, 12, best=False)
        print(json.dumps(line | {"next": holds(out), "files_next": names(out)}))


def train(out: Path, resume: bool = False) -> None:
    quill.run(
        text=TEXT, out_dir=str(out), data_dir=str(out.parent / "data"), resume=resume, progress=False, max_iters=9,
        eval_interval=3, eval_iters=2, log_interval=2, sample_tokens=5, n_layer=1, n_head=1, n_embd=8, block_size=8,
        batch_size=4, warmup_iters=1, learning_rate=0.3, min_lr=0.3, device="cpu",
    )  # fmt: skip


def left_by_run(out: Path) -> dict:
    """Return all that a finished run leaves behind that does not depend on the time."""
    checkpoints = [load_checkpoint(out, checkpoint=which) for which in ("best", "last")]
    state, metadata = read_tensors(checkpoints[1].path / "training.safetensors")
    digest = hashlib.sha256()
    for tensors in (*(c.weights for c in checkpoints), {name: t.numpy() for name, t in state.items()}):
        for name in sorted(tensors):
            digest.update(tensors[name].tobytes())
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [(e["reason"], e["step"], e["best_step"]) for e in events if e["event"] == "end"]
    losses = [(e["step"], e["val_loss"], e["best"]) for e in events if e["event"] == "evaluation"]
    return {
        "steps": [c.step for c in checkpoints], "progress": metadata["progress"], "tensors": digest.hexdigest(),
        "evaluations": losses, "ends": ends,
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*")),
    }  # fmt: skip


def crash_in_runs(out: Path, points: int) -> None:
    train(out)
    print(json.dumps({"n": 0, "left": left_by_run(out)}))
    total = count_points(lambda: train(out.with_name("counted")), out.with_name("counted"))
    for n in range(1, total, max(1, total // points)):
        shutil.rmtree(out)
        child = os.fork()
        if child == 0:
            die_at(n, out)
            train(out)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        train(out, resume=holds_run(out))
        print(json.dumps({"n": n, "left": left_by_run(out)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"save": crash_in_saves, "run": crash_in_runs}[sys.argv[1]](Path(sys.argv[2]), *map(json.loads, sys.argv[3:]))
