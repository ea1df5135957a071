"""A process killed at any point of a save leaves the old best and last or the new ones, and nothing that stays."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash_at_every_point.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the crashing process is a forked one")


def crash(*arguments: str) -> list[dict]:
    """Run the script above and return what it prints."""
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


Crashes = Callable[..., list[dict]]
SAVES: list[tuple[list[int], bool]] = [([3, 6], True), ([3, 6], False), ([], True)]


@pytest.fixture(scope="module", params=[7, pytest.param(1, marks=pytest.mark.long)])
def stride(request: pytest.FixtureRequest) -> int:
    """How many requests to the system there are between two crashes; in the long tests a crash is at each of them."""
    return request.param


@pytest.fixture(scope="module")
def crashes_of(stride: int, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    """What was found after a crash at each point of a save, by the steps saved before and whether it is the best."""
    lines = crash("save", str(tmp_path_factory.mktemp("crashes")), json.dumps(SAVES), str(stride))

    def found(earlier: list[int], best: bool) -> list[dict]:
        crashes = [line for line in lines if line["save"] == SAVES.index((earlier, best))]
        assert len(crashes) > 25 // stride and crashes[-1]["finished"] and not any(c["finished"] for c in crashes[:-1])
        return crashes

    return found


def files_of(best: int, last: int) -> list[str]:
    kept = [f"checkpoints/step-{step:06d}" for step in sorted({best, last})]
    inside = ["manifest.json", "model.safetensors", "training.safetensors"]
    folders = [*kept, *(f"{folder}/{name}" for folder in kept for name in inside)]
    return sorted(["best", "checkpoints", "checkpoints/index.json", "last", *folders])


@pytest.mark.parametrize("best", [True, False])
def test_a_crash_in_a_save_leaves_best_and_last_both_old_or_both_new(
    best: bool, crashes_of: Crashes, stride: int
) -> None:  # R1, R12
    old, new = [3, 6], [9 if best else 3, 9]
    crashes = crashes_of([3, 6], best)
    states = [crash["after"] for crash in crashes]
    assert states.count(old) > 5 // stride and states.count(new) > 5 // stride
    assert states == [old] * states.count(old) + [new] * states.count(new), "one moment decides, and for both"


@pytest.mark.parametrize("best", [True, False])
def test_cleaning_up_after_a_crash_leaves_the_kept_checkpoints_only(best: bool, crashes_of: Crashes) -> None:  # R2, R3
    for crash in crashes_of([3, 6], best):
        assert crash["cleaned"] == crash["after"]
        assert crash["files"] == files_of(*crash["cleaned"])
        assert crash["next"] == [9 if best else 3, 12] and crash["files_next"] == files_of(*crash["next"])


def test_after_a_crash_in_the_first_save_a_run_can_be_saved_again(
    crashes_of: Crashes,
) -> None:  # R15, the side of checkpoints
    for crash in crashes_of([], best=True):
        assert crash["after"] == [9, 9] or re.search(
            "holds no checkpoint|holds neither|repair the run", *crash["after"]
        )
        if crash["cleaned"] != [9, 9]:
            assert "holds n" in crash["cleaned"][0] and crash["files"] in ([], ["checkpoints"])
        assert crash["next"] == [9, 12]


@pytest.mark.long
def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:  # R1, R2, R3, R12, R15
    straight, *killed = crash("run", str(tmp_path / "out"), "20")
    assert len(killed) >= 20 and straight["left"]["steps"][0] < 9, "its best is not its last"
    for run in killed:
        assert run["left"] == straight["left"], run["n"]
