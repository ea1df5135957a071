"""parallel=fsdp: each process keeps a part of the weights; losses and checkpoints are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import CLASSIC, MODERN, TINY, WITHOUT_DROPOUT, environment, events, losses, quill, state_of, train

from quill.distributed.environment import Ranks
from quill.distributed.group import Group
from quill.errors import ConfigError
from quill.training.context import resolve_context

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torchrun of PyTorch for Windows has no libuv")

FSDP = "--parallel=fsdp"
CHECKS = Path(__file__).parents[1] / "sharded_checks.py"


@pytest.fixture(scope="module", params=[2, 3])
def checks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each process found of a classic model, a modern one with AdamW, and one with Muon."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(CHECKS)], env=environment(), capture_output=True, text=True, check=False,
        encoding="utf-8", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
@pytest.mark.parametrize("model", ["classic", "modern", "muon"])
def test_sharded_steps_change_weights_as_whole_ones_do(checks: list[dict[str, Any]], model: str) -> None:
    for found in (each[model] for each in checks):
        assert found["kept"], "dividing the weights does not change them"
        assert found["largest change"] > 1e-3 and found["largest difference"] < 1e-5
        assert found["norms"][1] == pytest.approx(found["norms"][0], rel=1e-5) and found["norms"][0][0] > 0.05


@pytest.mark.long
@pytest.mark.parametrize("model", ["classic", "modern", "muon"])
def test_each_process_has_about_an_equal_part_of_weights_gradients_and_state(
    checks: list[dict[str, Any]], model: str
) -> None:
    shares = [each[model]["share of memory"] for each in checks]
    tables = model == "muon"  # whole in every process, because their gradients are sparse
    assert sum(shares) == pytest.approx(1, abs=0.01 if not tables else 0.2) and max(shares) < 1 / len(shares) + 0.12


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [CLASSIC, [*MODERN, *WITHOUT_DROPOUT, "--film=True"], [*CLASSIC, "--gradient_checkpointing=True"]],
    ids=["classic", "modern", "checkpointing"],
)
def test_two_sharded_processes_have_the_losses_of_one_and_twice_the_same_bits(flags: list[str], tmp_path: Path) -> None:
    one = train(tmp_path, "one", *flags)
    two = train(tmp_path, "two", *flags, FSDP, processes=2)
    again = train(tmp_path, "again", *flags, FSDP, processes=2)
    assert len(losses(one)) == len(losses(two)) == 2 * 50 + 2 * 3
    for name, tolerance in (("train_loss", 1e-5), ("val_loss", 1e-5), ("gradient_norm", 3e-5)):
        expected, found = ([event[name] for event in each if name in event] for each in (one, two))
        assert found == pytest.approx(expected, abs=tolerance, rel=0) and len(found) >= 3
    assert losses(one) != losses(two) == losses(again) and state_of(tmp_path / "again") == state_of(tmp_path / "two")
    assert (tmp_path / "two/film.safetensors").exists() == ("--film=True" in flags)


@pytest.mark.long
def test_a_checkpoint_opens_sharded_replicated_and_in_one_process(tmp_path: Path) -> None:
    flags = [*TINY, *MODERN, *WITHOUT_DROPOUT, "--lr_decay_iters=60"]
    alone = quill(tmp_path, *flags, "--out_dir=alone", "--max_iters=60")
    assert alone.returncode == 0, alone.stderr
    for steps, processes, parallel in ((15, 2, "fsdp"), (30, 1, "fsdp"), (45, 4, "fsdp"), (60, 2, "ddp")):
        start = flags if steps == 15 else ["train", "--resume=True"]
        more = ["--out_dir=run", f"--max_iters={steps}", f"--parallel={parallel}"]
        done = quill(tmp_path, *start, *more, processes=processes)
        assert done.returncode == 0, done.stderr
    expected = {e["step"]: e["train_loss"] for e in events(tmp_path / "alone") if e["event"] == "step"}
    found = {e["step"]: e["train_loss"] for e in events(tmp_path / "run") if e["event"] == "step"}
    assert found == pytest.approx(expected, abs=2e-5, rel=0) and len(found) == 60
    written = quill(tmp_path, "generate", "--out_dir=run", "--max_new_tokens=10")
    assert written.returncode == 0, written.stderr


def test_settings_that_sharding_excludes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Group(Ranks(0, 2, 0))
    with pytest.raises(ConfigError, match="compile=True is not possible with parallel=fsdp"):
        resolve_context(device="cpu", group=two, parallel="fsdp", compile=True)
    monkeypatch.setattr("quill.training.context.resolve_dtype", lambda dtype, device: torch.float16)  # as on a GPU
    with pytest.raises(ConfigError, match="dtype=float16 is not possible with parallel=fsdp"):
        resolve_context(device="cpu", group=two, parallel="fsdp", dtype="float16")
    assert not resolve_context(device="cpu", parallel="fsdp").sharded, "one process has whole weights"
