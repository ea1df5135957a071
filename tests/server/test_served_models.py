"""Which models a server has: one run or all runs of a folder, by their names, always with the newest weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from quill.checkpoints.lock import is_locked, lock_run
from quill.checkpoints.run_folder import find_checkpoint
from quill.errors import CheckpointError
from quill.server.app import create_app
from quill.server.served_models import EngineSettings, ServedModels, UnknownModelError
from quill.server.settings import ServerSettings

HOW = EngineSettings(device="cpu", engine="torch")


@pytest.fixture
def runs(trained, tmp_path: Path) -> Path:
    """A folder of two runs; `new` was saved last."""
    for age, name in enumerate(("new", "old <script>")):
        shutil.copytree(trained.out, tmp_path / "runs" / name)
        for file in (tmp_path / "runs" / name).rglob("*"):
            os.utime(file, (10**9 - age, 10**9 - age))
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    return tmp_path / "runs"


def save_again(run: Path) -> None:
    """Change the time at which a run was saved, as its next save does."""
    for file in (run / "last", run / "checkpoints" / "index.json"):
        os.utime(file, (2 * 10**9, 2 * 10**9))


def test_every_run_in_a_folder_is_a_model_and_the_newest_is_the_default(runs: Path) -> None:
    served = ServedModels(runs, HOW)
    assert served.ids() == ["new", "old <script>"] and served.get().id == "new"
    save_again(runs / "old <script>")
    assert served.get().id == "old <script>"
    with pytest.raises(UnknownModelError, match=r"there is no model '\.\./runs/new'"):
        served.get("../runs/new")


@pytest.mark.parametrize(
    "path", ["new", "new/checkpoints/step-000006", "new/checkpoints/step-000006/model.safetensors"]
)
def test_a_run_a_checkpoint_or_a_file_is_one_model(runs: Path, path: str) -> None:
    served = ServedModels(runs / path, HOW)
    assert served.ids() == [path.removesuffix("/model.safetensors").rpartition("/")[2]]
    assert len(served.get().hash) == 64


def test_a_run_that_appears_later_is_served_too(runs: Path) -> None:
    served = ServedModels(runs, HOW)
    shutil.copytree(runs / "new", runs / "newer")
    assert "newer" in served.ids() and served.get("newer").folder == runs / "newer"


def test_a_folder_without_a_run_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train one with"):
        ServedModels(tmp_path, HOW)


def test_a_run_that_is_training_is_served_from_its_newest_checkpoint_and_says_so(runs: Path) -> None:
    served = ServedModels(runs, HOW)
    run = runs / "new"
    assert find_checkpoint(run, "best") == find_checkpoint(run, "last")
    before = served.get("new")
    assert not before.training and not is_locked(run)
    with lock_run(run):
        assert is_locked(run)
        assert served.get("new").training and served.get("new") is served.get("new")
        with TestClient(create_app(served, ServerSettings(allowed_hosts=("testserver",)))) as client:
            listed = {model["id"]: model["training"] for model in client.get("/v1/models").json()["data"]}
        assert listed == {"new": True, "old <script>": False}
    assert not served.get("new").training and served.get("new").hash == before.hash


def test_a_model_that_was_saved_again_is_loaded_again(runs: Path) -> None:
    served = ServedModels(runs, HOW)
    before = served.get("new")
    assert served.get("new") is before
    save_again(runs / "new")
    after = served.get("new")
    assert after is not before and after.hash == before.hash


def test_the_model_for_looking_inside_shares_no_weight_with_the_writer(runs: Path) -> None:
    model = ServedModels(runs, HOW).get()
    inside = model.language_model
    assert inside is model.language_model
    name, weight = next(iter(inside.model.named_parameters()))
    weight.data.add_(1)
    assert not (model.checkpoint.weights[name] == weight.detach().numpy()).any()


def test_damaged_weights_are_an_error_of_the_server_that_names_the_file(runs: Path) -> None:
    file = find_checkpoint(runs / "new") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with TestClient(create_app(ServedModels(runs, HOW), ServerSettings(allowed_hosts=("testserver",)))) as client:
        answer = client.post("/v1/completions", json={"prompt": "K"})
        assert answer.status_code == 500 and "model.safetensors" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == 503
        answer = client.post("/v1/completions", json={"prompt": "K", "model": "old <script>"})
        assert answer.status_code == 200


def test_a_model_that_is_not_loaded_is_listed_without_what_its_file_says(runs: Path) -> None:
    with TestClient(create_app(ServedModels(runs, HOW), ServerSettings(allowed_hosts=("testserver",)))) as client:
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert "weights_sha256" not in listed["old <script>"]
        one = client.get("/v1/models/old%20%3Cscript%3E").json()
        assert one["max_model_len"] == 8 and one["step"] == 6 and len(one["weights_sha256"]) == 64
