"""A process that kills itself at each point of a save where the system is asked for something. Run by test_crashes.py.

For n = 1, 2, … a forked child saves the next checkpoint of a run and ends itself by SIGKILL at its n-th request to the
system (before and after each fsync; at each opened, made, renamed or deleted file), until a child comes to its end.
Prints a JSON line for each: n, and what the folder holds after the crash, after cleaning up, and after the next save.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from quill.checkpoints.run_folder import clean_run_folder, find_checkpoint, load_checkpoint, save_checkpoint
from quill.errors import CheckpointError
from quill.files import is_draft
from quill.model.build import build_model
from quill.model.config import GPTConfig
from quill.tokenizers.char import CharTokenizer

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def save(out: Path, step: int, best: bool) -> None:
    torch.manual_seed(step)
    model = build_model(GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4))
    progress = {"step": step, "val_loss": 2.0, "best_val_loss": 2.0, "best_step": step if best else 3}
    save_checkpoint(
        out, model, CharTokenizer("abc"), step=step, val_loss=2.0, best=best,
        training_tensors={"rng.cpu": torch.get_rng_state()}, training_metadata={"progress": progress},
    )  # fmt: skip


def die_at(n: int, inside: Path) -> None:
    """End this process at its n-th request to the system that concerns the folder, and at its n-th fsync."""
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


def main(out: Path, earlier: list[int], best: bool) -> None:
    template = out.with_name("template")
    template.mkdir(parents=True)
    for step in earlier:
        save(template, step, best=step == 3)
    finished = False
    n = 0
    while not finished:
        n += 1
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
        line = {"n": n, "finished": finished, "after": holds(out)}
        clean_run_folder(out)
        line |= {"cleaned": holds(out), "files": names(out)}
        if line["cleaned"][-1] != 9:
            save(out, 9, best)
        save(out, 12, best=False)
        print(json.dumps(line | {"next": holds(out), "files_next": names(out)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
