"""Whatever is damaged in a run is refused in one line, and never replaced by another checkpoint."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quill.checkpoints.format import read_tensors
from quill.checkpoints.index import index_file, metrics_are_whole
from quill.checkpoints.run_folder import (
    clean_run_folder,
    find_checkpoint,
    holds_run,
    load_checkpoint,
)
from quill.errors import CheckpointError

TEXT = "a" * 64
SMALL_FILES = [
    "checkpoints/index.json",
    "checkpoints/step-000003/manifest.json",
    "checkpoints/step-000006/manifest.json",
]
ALL_FILES = [
    *SMALL_FILES,
    *(f"checkpoints/step-00000{n}/{name}.safetensors" for n in (3, 6) for name in ("model", "training")),
]


def everything_a_reader_sees(run: Path) -> list:
    """Read both checkpoints and their training states, and return what identifies them."""
    found = []
    for which in ("best", "last"):
        checkpoint = load_checkpoint(run, checkpoint=which)
        state = read_tensors(checkpoint.path / "training.safetensors")
        found.append(
            [
                checkpoint.step,
                {n: w.tobytes() for n, w in checkpoint.weights.items()},
                state[0]["rng.cpu"].numpy().tobytes(),
            ]
        )
    return found


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_changed_byte_is_an_error(name: str, run: Path) -> None:  # R10, R14
    """Some bytes of each file; all of them are in the test below."""
    check_bytes(name, run, flips=(32,), every=5)


@pytest.mark.long
@pytest.mark.parametrize("name", ALL_FILES)
def test_no_byte_can_change_without_an_error(name: str, run: Path) -> None:  # R10, R14
    check_bytes(name, run, flips=(1, 32, 128), every=1)


def check_bytes(name: str, run: Path, flips: tuple[int, ...], every: int) -> None:
    good = everything_a_reader_sees(run)
    data = (run / name).read_bytes()
    positions = range(len(data)) if name in SMALL_FILES else range(0, len(data), max(1, len(data) // 60))
    for position in positions[::every]:
        for flip in flips:
            (run / name).write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            try:
                found = everything_a_reader_sees(run)
            except CheckpointError:
                continue
            assert found == good and name in SMALL_FILES, f"byte {position} of {name} was not noticed"  # spaces of JSON
    (run / name).write_bytes(data)
    assert everything_a_reader_sees(run) == good


@pytest.mark.parametrize("name", ALL_FILES)
def test_no_file_can_be_cut_short_or_go_missing_without_an_error(
    name: str, run: Path, refused: Callable[..., str]
) -> None:  # R10
    data = (run / name).read_bytes()
    for size in sorted({0, 1, 8, len(data) // 2, len(data) - 2}):
        (run / name).write_bytes(data[:size])
        refused(lambda: everything_a_reader_sees(run))
    (run / name).unlink()
    refused(lambda: everything_a_reader_sees(run))


def test_the_files_best_and_last_of_a_run_with_an_index_are_not_read(run: Path) -> None:  # R8, R10
    shutil.copytree(run, run.parent / "elsewhere")
    for pointer in ("best", "last"):
        for wrong in (b"../../elsewhere/checkpoints/step-000003", b"step-000006", b"\xff", b""):
            (run / pointer).write_bytes(wrong)
            assert [load_checkpoint(run, checkpoint=which).path for which in ("best", "last")] == [
                run / "checkpoints" / "step-000003", run / "checkpoints" / "step-000006"
            ]  # fmt: skip
    clean_run_folder(run)
    assert [(run / pointer).read_text() for pointer in ("best", "last")] == ["step-000003\n", "step-000006\n"]


def test_a_checkpoint_under_the_name_of_another_step_is_refused(run: Path, refused: Callable[..., str]) -> None:  # R14
    best, last = run / "checkpoints" / "step-000003", run / "checkpoints" / "step-000006"
    os.replace(best, run / "kept")
    shutil.copytree(last, best)
    refused(lambda: load_checkpoint(run), "was altered")
    refused(lambda: load_checkpoint(best), "is of step 6, not of step-000003")
    refused(lambda: read_tensors(best / "training.safetensors"), "is of step 6")
    shutil.copy(run / "kept" / "training.safetensors", last / "training.safetensors")
    refused(lambda: read_tensors(last / "training.safetensors"), "was altered")


@pytest.mark.parametrize(
    "manifest",
    [
        b"{}", b"[]", b"null", b"7", b'"x"', b"{", b"\xff\xfe", b"[" * 5000, b" " * 100_000,
        b'{"step": 3, "sha256": []}',
        b'{"step": "3", "sha256": {}}', b'{"step": 3, "sha256": {"model.safetensors": 5, "training.safetensors": 5}}',
        json.dumps({"step": 3, "sha256": {"model.safetensor": TEXT, "training.safetensors": TEXT}}).encode(),
        json.dumps({"step": 3, "sha256": {"training.safetensors": TEXT}}).encode(),
        json.dumps({"step": -3, "sha256": {"model.safetensors": TEXT, "training.safetensors": TEXT}}).encode(),
    ],
)  # fmt: skip
def test_an_invalid_manifest_disables_no_check(
    manifest: bytes, run: Path, refused: Callable[..., str]
) -> None:  # R7, R14
    folder = find_checkpoint(run)
    (folder / "manifest.json").write_bytes(manifest)
    refused(lambda: load_checkpoint(folder), r"manifest\.json")
    copied = shutil.copytree(folder, run.parent / "mine")
    refused(lambda: load_checkpoint(copied), r"manifest\.json")
    (copied / "manifest.json").unlink()
    assert load_checkpoint(copied).step == 3, "outside a run a weights file stands alone"


@pytest.mark.parametrize(
    "index", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 5000, b'{"format": 2, "last": 1, "best": null, "sha256": 2}']
)
def test_a_damaged_index_is_refused_and_can_be_rebuilt(
    index: bytes, run: Path, save_step: Callable[..., Path], refused: Callable[..., str]
) -> None:  # R10
    index_file(run).write_bytes(index)
    refused(lambda: load_checkpoint(run), r"index\.json")
    refused(lambda: clean_run_folder(run), r"index\.json")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        save_step(run, 9)
    index_file(run).unlink()
    refused(lambda: load_checkpoint(run), r"index\.json is missing: repair .*--resume=True")
    assert holds_run(run)
    clean_run_folder(run)
    assert [load_checkpoint(run, checkpoint=which).step for which in ("best", "last")] == [3, 6]


def test_metrics_that_were_changed_since_the_save_are_noticed(run: Path, save_step: Callable[..., Path]) -> None:  # R10
    metrics = run / "metrics.jsonl"
    assert metrics_are_whole(run), "there were none"
    metrics.write_bytes(b'{"event": "start", "step": 0}\n')
    save_step(run, 9)
    good = metrics.read_bytes()
    metrics.write_bytes(good + b'{"event": "step", "step": 10}\n')
    assert metrics_are_whole(run), "more may be written after a save"
    for damaged in (good.replace(b"0", b"1"), good[:-1], good[1:], b""):
        metrics.write_bytes(damaged)
        assert not metrics_are_whole(run)
    metrics.unlink()
    assert not metrics_are_whole(run)


def test_a_length_of_metrics_beyond_the_file_is_not_read(run: Path) -> None:  # R7
    record = json.loads(index_file(run).read_text(encoding="utf-8"))
    (run / "metrics.jsonl").write_bytes(b"x")
    index_file(run).write_text(json.dumps(record | {"metrics": {"bytes": 2**53, "sha256": TEXT}}), encoding="utf-8")
    assert not metrics_are_whole(run)


def test_weights_of_another_step_than_their_manifest_are_refused(run: Path, refused: Callable[..., str]) -> None:  # R14
    """Each SHA-256 is right; only the step in the header of the weights is another."""
    best, last = run / "checkpoints" / "step-000003", run / "checkpoints" / "step-000006"
    record = json.loads((last / "manifest.json").read_text(encoding="utf-8"))
    for name in record["sha256"]:
        shutil.copy(last / name, best / name)
    (best / "manifest.json").write_text(json.dumps(record | {"step": 3}), encoding="utf-8")
    refused(lambda: load_checkpoint(best), "is of step 6 and its manifest of step 3")


@pytest.mark.parametrize("change", ["exchange last and best", "no best", "no metrics"])
def test_an_index_that_was_edited_is_refused(change: str, run: Path, refused: Callable[..., str]) -> None:  # R10
    record = json.loads(index_file(run).read_text(encoding="utf-8"))
    edits = {
        "exchange last and best": {"last": record["best"], "best": record["last"]},
        "no best": {"best": None},
        "no metrics": {"metrics": {"bytes": 0, "sha256": TEXT}},
    }
    index_file(run).write_text(json.dumps(record | edits[change]), encoding="utf-8")
    refused(lambda: load_checkpoint(run), "was altered")
