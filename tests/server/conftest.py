"""Servers of the tests: one in this process, with PyTorch's engine, and one in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api_client import start_server
from starlette.testclient import TestClient

from quill.generation.language_model import LanguageModel, load
from quill.server.app import create_app
from quill.server.served_models import EngineSettings, ServedModels
from quill.server.settings import ServerSettings


@pytest.fixture(scope="session")
def served(trained) -> ServedModels:
    return ServedModels(trained.out, EngineSettings(device="cpu", engine="torch"))


@pytest.fixture(scope="session")
def client(served: ServedModels) -> Iterator[TestClient]:
    """A client of the application in this process."""
    app = create_app(served, ServerSettings(allowed_hosts=("testserver",)))
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="session")
def model(trained) -> LanguageModel:
    """The model that the servers have."""
    return load(trained.out, device="cpu", engine="torch")


@pytest.fixture(scope="session")
def address(trained) -> Iterator[str]:
    """The address of a server in a process of its own, with the engine that `quill serve` chooses by itself."""
    _ = load(trained.out, device="cpu").batch  # compiles the step, once for all tests
    with start_server(str(trained.out), "--device=cpu") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        process.wait()
