"""The ground floor knows the machine: its number formats, and how its memory behaves when asked to."""

import importlib.machinery
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quill import device
from quill.device import resolve_dtype
from quill.errors import ConfigError
from quill.process import keep_freed_memory

CPU = torch.device("cpu")
FAULTS = """
import resource, torch
from quill.process import keep_freed_memory
import quill.training.loop
for prepare in (bool, keep_freed_memory):
    prepare()
    for _ in range(10):
        torch.ones(16_000_000)  # until the heap has places for it, whatever lies between them
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


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back like this")
def test_kept_memory_costs_no_page_faults_and_importing_changes_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    left, kept = map(int, run.stdout.split())
    assert left > 10_000 and kept < left / 5, (left, kept)


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc can")
def test_systems_without_glibc_keep_their_memory_settings() -> None:
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    ("built_for", "there", "answer"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", ["/dev/nvidiactl"], True),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None", ["/dev/nvidiactl"], False),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None", [], True),
        ("cuda = None\nhip = '6.4'", ["/dev/kfd"], False),
        ("cuda = None\nhip = '6.4'", ["/dev/nvidiactl"], True),
    ],
)
def test_a_cpu_is_known_without_importing_pytorch(
    built_for: str, there: list[str], answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2'\n{built_for}\n", encoding="utf-8")
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "platform", "linux")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: str(p) in there if str(p).startswith("/dev/") else exists(p))
    assert device.means_cpu("auto") is answer
    assert device.means_cpu("cpu") and not device.means_cpu("cuda")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not device.means_cpu("auto"), "a Mac may have MPS"


def test_where_a_cpu_is_assumed_pytorch_uses_a_cpu() -> None:
    assert not device.means_cpu("auto") or device.resolve_device("auto").type == "cpu"


THREADS = "from quill.device import cpu_threads; n = cpu_threads(); import torch; print(n, torch.get_num_threads())"


def test_as_many_threads_are_taken_as_pytorch_has_in_this_process() -> None:
    assert device.cpu_threads() == torch.get_num_threads()


# Each value needs a process of its own that imports PyTorch.
@pytest.mark.long
@pytest.mark.parametrize("asked", [None, "1", "2", "nonsense"])
def test_as_many_threads_are_taken_without_pytorch_as_with_it(asked: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if asked is None else {"OMP_NUM_THREADS": asked}
    run = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True)
    before, after = run.stdout.split()
    assert before == after


def cgroups(root: Path, groups: str, **files: str) -> Path:
    """Write what Linux tells a process of its control groups, below another root."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/host/path/of/it", {"cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "100000 100000"}, 1),
        ("4:memory:/x\n3:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpuset:/x", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 8),
        ("0::/", {"cpu.max": "damaged"}, 8),
        ("0::/", {}, 8),
    ],
)
def test_the_quota_of_a_container_bounds_the_threads(  # W11
    groups: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert device.usable_cores(cgroups(tmp_path, groups, **files)) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to cores")
def test_a_process_on_one_core_computes_with_one_thread_whatever_is_asked_for() -> None:  # W11
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + THREADS.partition("; import")[0]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", f"{code}; print(n)"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "1\n"
