"""Runs of format 1 (`data/format-1-*`, written by version 0.3) load, write the same text and are resumed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import quill
from quill.checkpoints.format import read_checkpoint
from quill.checkpoints.run_folder import clean_run_folder, find_checkpoint, load_checkpoint
from quill.errors import CheckpointError
from quill.tracking.jsonl import read_events

DATA = Path(__file__).parent / "data"
WRITTEN = json.loads((DATA / "format-1.json").read_text(encoding="utf-8"))
TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))
each_kind = pytest.mark.parametrize("kind", ["classic", "modern"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that copies a run of format 1, with its text, to where it may be changed."""
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return lambda kind: Path(shutil.copytree(DATA / f"format-1-{kind}", kind))


@each_kind
@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_a_run_of_format_1_generates_the_recorded_text(kind: str, engine: str) -> None:
    for checkpoint in ("best", "last"):
        folder = find_checkpoint(DATA / f"format-1-{kind}", checkpoint)
        model = quill.load(folder, device="cpu", engine=engine)
        assert model.generate("KING ", max_new_tokens=40, seed=1) == WRITTEN[kind][checkpoint]


@each_kind
def test_a_run_of_format_1_resumes_with_the_recorded_loss(kind: str, run: Callable, quill: Callable) -> None:
    out = run(kind)
    code, _, error = quill("train", "--resume=True", f"--out_dir={out}", "--max_iters=9")
    assert code == 0, error
    (loss,) = [e["val_loss"] for e in read_events(out / "metrics.jsonl") if e["event"] == "evaluation"]
    assert loss == pytest.approx(WRITTEN[kind]["resumed"]["val_loss"], rel=1e-4)
    assert load_checkpoint(out, checkpoint="last").metadata["format"] == 2
    assert find_checkpoint(out).name == WRITTEN[kind]["resumed"]["best"]
    assert find_checkpoint(out, "last").name == "step-000009" and (out / "checkpoints" / "index.json").is_file()


def test_a_pointer_names_a_checkpoint_of_the_run_or_is_refused(run: Callable) -> None:  # R8, R10
    out = run("classic")
    elsewhere = shutil.copytree(out, out.parent / "elsewhere") / "checkpoints" / "step-000003"
    for pointer in ("best", "last"):
        good = (out / pointer).read_bytes()
        for wrong in (
            f"../../{elsewhere}".encode(),
            str(elsewhere.absolute()).encode(),
            b"step-000004",
            b"\xff\xfe",
            b"",
        ):
            (out / pointer).write_bytes(wrong)
            with pytest.raises(CheckpointError, match="which is not a checkpoint of the run"):
                load_checkpoint(out)
        (out / pointer).write_bytes(good)
    assert load_checkpoint(out).step == 3


def test_a_best_checkpoint_lost_in_a_crash_is_found_by_the_progress_in_the_last(run: Callable) -> None:  # R1
    out = run("classic")
    (out / "best").write_text("step-000006\n", encoding="utf-8")  # the training state of step 6 says that 3 is best
    assert load_checkpoint(out).step == 3
    clean_run_folder(out)
    assert (out / "best").read_text(encoding="utf-8") == "step-000003\n" and load_checkpoint(out).step == 3
    shutil.rmtree(out / "checkpoints" / "step-000003")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        load_checkpoint(out)
    assert load_checkpoint(out, checkpoint="last").step == 6


@each_kind
def test_weights_of_format_1_are_loaded_under_their_present_names(kind: str) -> None:
    checkpoint = read_checkpoint(find_checkpoint(DATA / f"format-1-{kind}") / "model.safetensors")
    assert checkpoint.weights.keys() == dict(checkpoint.model.named_parameters()).keys()
    assert ("embedding_skip" in checkpoint.weights) == (kind == "modern")
