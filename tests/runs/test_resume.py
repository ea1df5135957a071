"""What cannot be resumed, and what its message names."""

from __future__ import annotations

import shutil

import pytest

from quill.errors import CheckpointError
from quill.runs.resume import resumed_settings


def test_a_folder_without_a_run_is_answered_with_a_run_that_is_there(here, trained):  # U7, U17
    """The advice never starts a long run: it named to leave out --resume, which is half a day at the full size."""
    with pytest.raises(CheckpointError, match=r"out holds no run to resume: start one first, .* minutes=5$"):
        resumed_settings(here / "out", {})
    shutil.copytree(trained.out, here / "out-mine")
    found = r"out holds no run to resume \(there is a run in out-mine\): name its folder as out_dir$"
    with pytest.raises(CheckpointError, match=found):
        resumed_settings(here / "out", {})


def test_a_run_without_its_configuration_is_not_told_to_start_over(here, trained):  # T9
    shutil.copytree(trained.out, here / "out")
    (here / "out" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has lost its config\.yaml.*init_from="):
        resumed_settings(here / "out", {})
