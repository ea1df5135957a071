"""What cannot be resumed, and what its message names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from quill.checkpoints.config_file import write_config
from quill.errors import CheckpointError, ConfigError
from quill.runs.resume import refuse_existing_run, resumed_settings
from quill.runs.settings import default_settings


def test_a_folder_without_a_run_is_answered_with_a_run_that_is_there(here, trained):  # U7, U17
    """The advice never starts a long run: it named to leave out --resume, which is half a day at the full size."""
    with pytest.raises(CheckpointError, match=r"out holds no run to resume: start one first, .* minutes=5$"):
        resumed_settings(here / "out", {})
    shutil.copytree(trained.out, here / "out-mine")
    found = r"out holds no run to resume \(there is a run in out-mine\): name its folder as out_dir$"
    with pytest.raises(CheckpointError, match=found):
        resumed_settings(here / "out", {})


def test_the_error_for_a_run_without_configuration_does_not_advise_to_start_over(here, trained):  # T9
    shutil.copytree(trained.out, here / "out")
    (here / "out" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has lost its config\.yaml.*init_from="):
        resumed_settings(here / "out", {})
    # Advice to resume it would lead back to that message.
    with pytest.raises(ConfigError, match=r"has lost its config\.yaml.*overwrite=True") as caught:
        refuse_existing_run(here / "out", {})
    assert "resume" not in str(caught.value)


@pytest.fixture
def configured(here) -> Path:
    """A folder with the configuration of a run, and as much else as makes it one to be resumed."""
    write_config(here / "out", default_settings("classic") | {"dataset": "my.txt"})
    (here / "out" / "last").write_text("step-000006\n", encoding="utf-8")
    return here / "out"


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])
def test_no_damage_of_the_configuration_gives_other_settings(configured, stride):  # R10, R13
    """Each byte is changed in turn, and the file is cut at each place; in the core tests, at every fourth."""
    file, good = configured / "config.yaml", resumed_settings(configured, {})
    data = file.read_bytes()
    flips = [(i, bytes([data[i] ^ (1, 32, 128)[i % 3]])) for i in range(0, len(data), stride)]
    cuts = [data[:i] for i in range(0, len(data) - 1, 5 * stride)]
    damaged = [data[:i] + byte + data[i + 1 :] for i, byte in flips] + cuts
    refused = 0
    for harmed in damaged:
        file.write_bytes(harmed)
        try:
            assert resumed_settings(configured, {}) == good
        except (CheckpointError, ConfigError) as error:
            assert "config.yaml" in str(error) and "\n" not in str(error) and len(str(error)) < 600
            refused += 1
    assert refused > 0.8 * len(damaged)


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 0.9), ("max_iters", 7), ("dtype", "bfloat16"), ("dataset", "other.txt")]
)
def test_a_setting_that_was_edited_in_config_yaml_is_refused_and_taken_as_a_flag(configured, name, value):  # R13
    file, before = configured / "config.yaml", resumed_settings(configured, {})
    text = file.read_text(encoding="utf-8")
    line = re.search(rf"^{name}: .*$", text, re.MULTILINE)
    assert line is not None
    file.write_text(text.replace(line[0], f"{name}: {value}"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.yaml was changed since the run wrote it.*as a flag"):
        resumed_settings(configured, {})
    file.write_text(text, encoding="utf-8")
    assert resumed_settings(configured, {name: value}) == before | {name: value}


def test_comments_line_ends_and_order_of_a_configuration_may_change(configured):
    file, good = configured / "config.yaml", resumed_settings(configured, {})
    first, *lines = file.read_text(encoding="utf-8").splitlines()
    file.write_bytes("\r\n".join(["# mine", first, *reversed(lines), "# more", ""]).encode())
    assert resumed_settings(configured, {}) == good


def test_a_configuration_of_an_earlier_version_has_no_checksum(configured):
    file = configured / "config.yaml"
    _, *lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(lines).replace("learning_rate: 0.001", "learning_rate: 0.002"), encoding="utf-8")
    assert resumed_settings(configured, {})["learning_rate"] == 0.002
