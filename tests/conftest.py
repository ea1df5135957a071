"""Fixtures of all tests: a small text, tiny models and runs. Two tests run at a time, with a cache of their own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported, which asks for the number of threads once
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from filelock import FileLock
from recipes import MakeRecipe, Recipe
from signals import default_signals

from quill.cli.main import main
from quill.data.dataset import Dataset, prepare_dataset
from quill.model.config import GPTConfig
from quill.tracking import loss_plot, phase_display
from quill.training.config import TrainConfig
from quill.training.context import resolve_context


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let long tests begin first, or one core would wait for them at the end; then those that compile the step.

    While one worker compiles, the other begins with tests that do not need the compiled step.
    """
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, item.path.name != "test_engines.py"))


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name the cases of a test by their values; pytest itself would name a list or a dictionary by its number."""
    text = _short(val)
    return None if text is None else ascii(text)[1:-1][:80]


def _short(val: object) -> str | None:
    """Return a value as a short text that is the same in every process, or None for what has no such text."""
    if isinstance(val, str | int | float | None):
        return str(val)
    if isinstance(val, bytes):
        return ascii(val)
    if isinstance(val, BaseException):
        return f"{type(val).__name__} {val}"
    if isinstance(val, list | tuple):
        parts = [_short(each) for each in val]
        return None if None in parts else " ".join(map(str, parts)) or "none"
    if isinstance(val, dict):
        return _short([f"{name}={_short(each)}" for name, each in val.items()])
    if is_dataclass(val) and not isinstance(val, type):
        defaults = {field.name: field.default for field in fields(val)}
        return _short({name: each for name, each in vars(val).items() if each != defaults.get(name)})
    return None


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory):
    """Give all tests of this run one cache, empty at first, so that code is compiled once for all.

    What one worker compiles, the other waits for.
    """
    shared = _shared(tmp_path_factory.getbasetemp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUILL_CACHE_DIR", str(shared / "cache"))
        if importlib.util.find_spec("numba") is not None:
            from quill.engines import numba_engine

            load_step = numba_engine.load_step

            def load_once(kind: str, *arguments: Any) -> Any:
                with FileLock(shared / f"{kind}.lock"):
                    return load_step(kind, *arguments)

            patch.setattr(numba_engine, "load_step", load_once)
        yield


def _shared(base: Path) -> Path:
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


# About a second of training: what these tests ask is whether the parts fit together, not whether they learn.
TINY = [
    "--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=8", "--dropout=0.0", "--batch_size=4", "--max_iters=6",
    "--eval_interval=3", "--eval_iters=2", "--log_interval=2", "--sample_tokens=12", "--warmup_iters=2", "--device=cpu",
]  # fmt: skip
TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))


def _changed(flags: Sequence[str]) -> list[str]:
    """Return the flags of a test without those that a later one changes: given twice, a flag is refused."""
    names = [
        word.partition("=")[0] if word.startswith("--") and not word.startswith("--stop=") else None for word in flags
    ]
    return [word for i, word in enumerate(flags) if names[i] is None or names[i] not in names[i + 1 :]]


@dataclass(frozen=True)
class Run:
    """A trained run, the folder that holds everything, and the flags that made it."""

    folder: Path
    flags: list[str]

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="session", autouse=True)
def no_data(tmp_path_factory: pytest.TempPathFactory):
    """Keep the corpora of this machine out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUILL_DATA_DIR", str(tmp_path_factory.mktemp("no-data")))
        yield


@pytest.fixture
def signals() -> Iterator[None]:
    """Let this process and those that it starts receive signals, also where the tests run in the background."""
    with default_signals():
        yield


DRAW_LOSSES = loss_plot.draw_losses


@pytest.fixture(scope="session", autouse=True)
def no_loss_plots():
    """Write the first bytes of a PNG instead of the loss plot of a run, which takes half of the time of a small one.

    The plot is drawn for `trained`, in the tests that use `loss_plots`, and in all processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_plot, "draw_losses", lambda events: b"\x89PNG\r\n\x1a\n")
        yield


@pytest.fixture
def loss_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the loss plots of runs."""
    monkeypatch.setattr(loss_plot, "draw_losses", DRAW_LOSSES)


@pytest.fixture
def tiny() -> list[str]:
    """Flags for the smallest training that still does everything."""
    return list(TINY)


@pytest.fixture
def changed() -> Callable[[Sequence[str]], list[str]]:
    """Remove the flags that a later one of the same name changes."""
    return _changed


@pytest.fixture
def files_below() -> Callable[[Path], dict[str, bytes]]:
    """Every file in a folder with its contents."""
    return _files_below


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a text in it."""
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `quill train`, made once; tests read it and leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "my.txt"
    text.write_text(TEXT, encoding="utf-8")
    flags = [*TINY, f"--dataset={text}", f"--data_dir={folder / 'data'}", f"--out_dir={folder / 'out'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_plot, "draw_losses", DRAW_LOSSES)
        assert main(["train", *flags]) == 0
    return Run(folder, flags)


@pytest.fixture
def quill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: (exit code, standard output, standard error).

    The progress of a long phase, which is shown after two seconds, is not: a busy machine may take that long.
    """
    monkeypatch.setattr(phase_display, "SECONDS_BETWEEN_LINES", 600.0)

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(_changed([str(word) for word in argv]))
        out, error = capsys.readouterr()
        return code, out, error

    return run


@pytest.fixture
def refused(quill: Callable[..., tuple[int, str, str]], here: Path) -> Callable[..., str]:
    """Run a command that must be refused with one line and exit code 2, and must write nothing; return the line."""

    def run(*argv: str | Path) -> str:
        before = _files_below(Path.cwd())
        code, out, error = quill(*argv)
        assert (code, out, error.count("\n")) == (2, "", 1), error
        assert error.startswith("quill") and ": error: " in error and "Traceback" not in error
        assert _files_below(Path.cwd()) == before
        return error

    return run


def _files_below(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its contents."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def environment() -> dict[str, str]:
    """What a command in a process of its own should see: a person's terminal, not CI or a notebook."""
    hidden = ("CI", "JPY_PARENT_PID", "TERM", "COLUMNS", "LINES", "NO_COLOR")
    return {k: v for k, v in os.environ.items() if k not in hidden} | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}


FOX = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n" * 40


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "fox.txt").write_text(FOX, encoding="utf-8")
    return prepare_dataset(str(folder / "fox.txt"), data_dir=folder / "data")


@pytest.fixture
def model_config(dataset: Dataset) -> GPTConfig:
    return GPTConfig(dataset.tokenizer.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.2)


@pytest.fixture
def recipe(tmp_path: Path) -> MakeRecipe:
    """Return the recipe and context of a short run, with what is given changed; `out` names its folder."""

    def make(out: str = "out", **changes: Any) -> Recipe:
        config = {
            "batch_size": 4, "max_iters": 12, "warmup_iters": 2, "eval_interval": 4, "eval_iters": 2,
            "learning_rate": 1e-2,
        }  # fmt: skip
        context = {"device": "cpu", "log_interval": 3}
        names = {field.name for field in fields(TrainConfig)}
        config |= {name: value for name, value in changes.items() if name in names}
        context |= {name: value for name, value in changes.items() if name not in names}
        return Recipe(TrainConfig(**config), resolve_context(tmp_path / out, **context))

    return make
