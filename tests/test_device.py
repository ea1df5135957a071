"""The ground floor knows the machine: its number formats, and how its memory behaves when asked to."""

import platform
import subprocess
import sys

import pytest
import torch

from quill import device
from quill.device import keep_freed_memory, resolve_dtype
from quill.errors import ConfigError

CPU = torch.device("cpu")
FAULTS = """
import resource, sys, torch
from quill.device import keep_freed_memory
import quill.training.loop
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16_000_000)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_fastest_format_of_a_cpu_is_what_it_can_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    for can, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "multiplies_bfloat16", lambda can=can: can)
        assert resolve_dtype("fastest", CPU) == expected
        assert resolve_dtype("auto", CPU) == torch.float32, "what nobody asked for stays exact"
    with pytest.raises(ConfigError, match="'quick' is unknown: use one of auto, fastest"):
        resolve_dtype("quick", CPU)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back like this")
def test_kept_memory_costs_no_page_faults_and_importing_changes_nothing() -> None:
    faults = {}
    for how in ("leave", "keep"):
        run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        faults[how] = int(run.stdout)
    assert faults["leave"] > 10_000 and faults["keep"] < faults["leave"] / 5, faults


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc can")
def test_other_systems_are_left_alone() -> None:
    assert not keep_freed_memory()
