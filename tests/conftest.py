"""What all tests share: two run at a time, each on a core of its own, and none sees this machine's cache."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported, which asks for the number of threads once
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let long tests begin first, or one core would wait for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory):
    """Give all tests of this run one cache, empty at first, so that code is compiled once for all."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUILL_CACHE_DIR", str(_shared(base) / "cache"))
        yield


def _shared(base: Path) -> Path:
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
