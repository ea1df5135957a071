"""The trained model that comes with Quill: every command finds it by name, and its README states its true origin."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import quill
from quill.checkpoints.named import find_model, tiny_model
from quill.cli.main import main
from quill.data.corpus import SHAKESPEARE
from quill.errors import CheckpointError
from quill.runs.presets import read_config
from quill.server.served_models import EngineSettings, ServedModels
from quill.tracking.jsonl import read_events

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "metrics.jsonl", "model.safetensors")
LARGEST = 2_000_000
PASSAGE = """\
ROMEO:
I would I were thy bird.

JULIET:
Sweet, so would I:
Yet I should kill thee with much cherishing.
Good night, good night! parting is such sweet sorrow,
That I shall say good night till it be morrow.
"""


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_model_has_three_files_of_under_two_megabytes() -> None:
    assert tuple(sorted(file.name for file in tiny_model().iterdir())) == FILES
    assert (tiny_model() / "model.safetensors").stat().st_size < LARGEST
    assert sum(file.stat().st_size for file in tiny_model().iterdir()) < LARGEST


def test_it_predicts_verse_far_better_than_a_table_of_pairs(empty_folder: Path) -> None:
    loss = quill.load("tiny", device="cpu").evaluate(text=PASSAGE).loss
    assert loss < 1.8  # counting pairs of Tiny Shakespeare gives about 2.45


def test_a_file_or_folder_named_tiny_comes_first(empty_folder: Path) -> None:
    assert find_model("tiny") == tiny_model()
    assert find_model("./other/tiny") == Path("other/tiny")
    quill.save(quill.load("tiny", device="cpu"), "tiny")
    assert find_model("tiny") == Path("tiny")


def test_without_a_name_only_the_server_falls_back_to_it(empty_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="name tiny, the small model that comes with Quill"):
        quill.load()
    served = ServedModels(None, EngineSettings(device="cpu", engine="torch"))
    assert served.ids() == ["tiny"] and served.get().folder == tiny_model()
    with pytest.raises(CheckpointError):
        ServedModels(empty_folder)


def test_a_run_that_appears_replaces_it_in_the_server(empty_folder: Path, trained) -> None:
    served = ServedModels(None, EngineSettings(device="cpu", engine="torch"))
    shutil.copytree(trained.out, empty_folder / "mine")
    assert served.ids() == ["mine"]


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--out_dir=tiny", "--prompt=ROMEO:", "--max_new_tokens=20", "--seed=1"],
        ["info", "tiny"],
        ["evaluate", "tiny", "--dataset=passage.txt", "--split=train"],
        ["inspect", "tiny", "--prompt=ROMEO:", "--json"],
        ["train", "--init_from=tiny", "--dataset=passage.txt", "--max_iters=1", "--out_dir=mine"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_finds_it_by_name(command: list[str], empty_folder: Path, capsys) -> None:
    Path("passage.txt").write_text(PASSAGE * 20)
    before = fingerprint()
    assert main(command) == 0
    assert capsys.readouterr().out and fingerprint() == before


def test_inspect_writes_its_files_into_the_current_folder(empty_folder: Path) -> None:
    before = fingerprint()
    assert main(["inspect", "tiny", "--prompt=ROMEO:"]) == 0
    assert (empty_folder / "inspect").is_dir() and fingerprint() == before


def test_its_readme_states_what_its_files_hold() -> None:
    readme = (tiny_model() / "README.md").read_text(encoding="utf-8")
    data = (tiny_model() / "model.safetensors").read_bytes()
    checkpoint = quill.load(tiny_model(), device="cpu").checkpoint
    assert checkpoint is not None
    facts = {
        f"`{hashlib.sha256(data).hexdigest()}`",
        f"{len(data):,} bytes",
        f"`{SHAKESPEARE.sha256}`",
        f"{sum(weight.size for weight in checkpoint.weights.values()):,}",
        f"{checkpoint.step:,} of",
    }
    assert not [fact for fact in facts if fact not in readme]
    assert checkpoint.text_sha256 == SHAKESPEARE.sha256


def test_it_was_made_by_the_recipe_beside_the_command_that_made_it() -> None:
    recipe = read_config(str(ROOT / "tools" / "tiny_model.yaml"))[0]
    checkpoint = quill.load(tiny_model(), device="cpu").checkpoint
    assert checkpoint is not None
    shape = ("n_layer", "n_head", "n_embd", "block_size", "ngram")
    assert {name: getattr(checkpoint.config, name) for name in shape} == {name: recipe[name] for name in shape}
    events = read_events(tiny_model() / "metrics.jsonl")
    assert events[-1]["event"] == "end" and events[-1]["step"] == recipe["max_iters"]
    assert events[-1]["best_step"] == checkpoint.step and events[-1]["best_val_loss"] == checkpoint.val_loss


@pytest.mark.long
def test_it_is_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"quill/tiny/{name}" for name in FILES} <= set(names)


def fingerprint() -> dict[str, str]:
    """Return the SHA-256 of each file of the model."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(tiny_model().iterdir())}
