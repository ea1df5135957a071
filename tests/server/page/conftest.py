"""A tiny trained run with a film, and the page's routes in an application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import quill
from quill.server.app import create_app
from quill.server.served_models import ServedModels

TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))
SETTINGS: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "batch_size": 8, "max_iters": 20, "eval_interval": 10,
    "eval_iters": 2, "log_interval": 5, "sample_tokens": 12, "warmup_iters": 2, "device": "cpu", "progress": False,
    "learning_rate": 0.01, "film": True,
}  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """A folder with two trained runs, a classic and a modern one, and their text."""

    folder: Path

    @property
    def classic(self) -> Path:
        return self.folder / "runs" / "classic"

    @property
    def modern(self) -> Path:
        return self.folder / "runs" / "modern"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two trained runs, made once; tests read them and leave them as they are."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    start: Any = quill.run
    for name in ("modern", "classic"):  # the classic one is the newest, so the default
        start(
            dataset=str(folder / "my.txt"), data_dir=str(folder / "data"), out_dir=str(folder / "runs" / name),
            architecture=name, **SETTINGS,
        )  # fmt: skip
    return Runs(folder)


@pytest.fixture
def lab_client(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the page's routes, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    app = create_app(ServedModels(runs.folder / "runs"))
    with TestClient(app, base_url="http://127.0.0.1") as lab_client:
        yield lab_client


@pytest.fixture
def ask(lab_client: TestClient) -> Callable[..., Any]:
    """Ask a question as the page does, and return the answer: JSON, or bytes."""

    def ask(path: str, **question: Any) -> Any:
        response = lab_client.post(f"/api{path}", json=question)
        assert response.status_code == 200, response.text
        return response.json() if response.headers["content-type"] == "application/json" else response.content

    return ask
