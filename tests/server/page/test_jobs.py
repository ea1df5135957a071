"""Long work runs in a process of its own, one at a time, and can be cancelled."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quill
from quill import lab
from quill.experiments import catalog
from quill.experiments.catalog import CATALOG, load_experiment
from quill.experiments.experiment import Experiment, Result, Settings
from quill.experiments.inside.studied import StudySettings
from quill.experiments.verdict import Effect
from quill.lab.ablation.cost import text_windows
from quill.lab.ablation.targets import every_head
from quill.lab.drawing.curves import Curve, draw_curves
from quill.lab.statistics import Interval
from quill.lab.tuned_lens import NAME
from quill.server.page import job_process
from quill.server.page.learn import LESSONS, OWN_MODEL


def finished(lab_client):
    """Return the status of the newest job once it has ended."""
    for thread in threading.enumerate():
        if thread.name == "job":
            thread.join()
    return lab_client.get("/api/jobs").json()


def validation_tokens(model, runs):
    tokens = model.tokenizer.encode((runs.folder / "my.txt").read_text(encoding="utf-8"))
    return tokens[int(0.9 * len(tokens)) :]


@pytest.mark.long
def test_the_job_heads_measures_what_the_lab_measures(lab_client, ask, runs):
    assert lab_client.get("/api/jobs").json() is None
    assert ask("/look/heads") == {"measured": False}
    assert ask("/jobs", job="heads")["state"] == "running"
    assert finished(lab_client)["state"] == "done"
    found = ask("/look/heads")
    model = quill.load(runs.classic, device="cpu")
    tokens = validation_tokens(model, runs)
    costs = lab.ablate_each(model, tokens, every_head(model.config), windows=32)
    expected = lab.head_roles(model, text_windows(model, tokens, 32), costs=costs)
    assert found["measured"] and found["roles"] == expected.roles
    assert expected.cost_LH is not None
    assert np.allclose(found["loss_added_by_ablation"], expected.cost_LH, atol=1e-6)
    flat = [each for row in found["costs"] for each in row]
    for each, interval in zip(flat, costs.costs, strict=True):
        assert each == pytest.approx(dataclasses.asdict(interval), abs=1e-6)
    assert ask("/look/heads", model="modern") == {"measured": False}


@pytest.mark.long
def test_the_job_tuned_lens_leaves_one_in_the_run(lab_client, ask, runs):
    try:
        ask("/jobs", job="tuned-lens", model="modern")
        assert finished(lab_client)["state"] == "done"
        assert ask("/look/lens", text="KING 3", tuned=True, model="modern")["tuned"] is True
    finally:
        (runs.modern / NAME).unlink()


@pytest.mark.long
def test_a_second_job_is_refused_and_a_cancelled_one_ends(lab_client, ask, runs):
    ask("/jobs", job="experiment", experiment="ladder")
    response = lab_client.post("/api/jobs", json={"job": "heads"})
    assert response.status_code == 409 and "running" in response.json()["error"]["message"]
    assert ask("/jobs/cancel")["state"] == "cancelled"
    assert finished(lab_client)["state"] == "cancelled"
    assert lab_client.get("/api/learn/ladder").status_code == 404
    assert ask("/jobs", job="tuned-lens")["number"] == 2
    assert ask("/jobs/cancel")["state"] == "cancelled"


@pytest.mark.long
def test_a_job_that_fails_says_why(lab_client, ask, runs):
    ask("/jobs", job="experiment", experiment="communication", quick=True)
    status = finished(lab_client)
    assert status["state"] == "failed" and "too short" in status["what"]


@pytest.mark.long
def test_the_process_of_a_job_ends_when_its_input_is_closed(runs):
    task = {"job": "tuned-lens", "run": str(runs.classic), "checkpoint": str(runs.classic)}
    command = [sys.executable, "-m", "quill.server.page.job_process"]
    done = subprocess.run(command, input=json.dumps(task) + "\n", encoding="utf-8", capture_output=True, check=False)
    assert done.returncode == 1 and '"done"' not in done.stdout
    assert not (runs.classic / NAME).exists()


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Any]:
    """The result of a small experiment, stored where `quill experiment` stores it."""
    effects = (Effect("one over none", Interval(1.0, 0.5, 1.5), 0.1),)
    result = Result(
        "induction", "Title", "The claim.", "The measure.", "The control.", "The opposite.", effects, {"x": 1},
        Settings(), draw=blank,
    )  # fmt: skip
    result.save(tmp_path / "experiments" / "induction")
    return result.numbers()


def test_the_lessons_show_the_stored_result_of_an_experiment(lab_client, stored):
    overview = lab_client.get("/api/learn").json()
    found = {each["name"]: each for lesson in overview for each in lesson["experiments"]}
    assert found["induction"]["verdict"] == stored["verdict"] == "supported"
    assert found["induction"]["claim"] == "The claim." and found["ladder"]["verdict"] is None
    found = lab_client.get("/api/learn/induction").json()
    for name in ("effects", "controls", "control", "measure", "opposite", "settings", "seed"):
        assert found[name] == stored[name]
    assert lab_client.get("/api/learn/induction/picture").content.startswith(b"\x89PNG")
    assert lab_client.get("/api/learn/ladder").status_code == 404


@pytest.mark.long
def test_an_experiment_runs_on_the_text_of_the_model_and_stores_its_result(runs, tmp_path, monkeypatch):
    chosen = []

    def run(settings: Settings, on_progress: object) -> Result:
        chosen.append(settings)
        return Result("heads", "", "", "", "", "", (Effect("a", Interval(1, 1, 1), 0),), {}, settings, draw=blank)

    experiment = Experiment("heads", "claim", run, StudySettings(), StudySettings(steps=7))
    monkeypatch.setattr(catalog, "load_experiment", lambda name: experiment)
    monkeypatch.chdir(tmp_path)
    task = {"experiment": "heads", "quick": True, "own_model": True, "run": str(runs.classic)}
    job_process.run_experiment(task, lambda what, share: None)
    text, data = str(runs.folder / "my.txt"), str(runs.folder / "data")
    assert chosen == [StudySettings(dataset=text, data_dir=data, run=str(runs.classic), steps=7)]
    assert (tmp_path / "experiments" / "heads" / "result.json").is_file()


def blank(result: Result) -> Any:
    return draw_curves([Curve("a", [0, 1], [0, 1], "red")], title="t", x="x", y="y")


def test_every_experiment_is_in_one_of_the_eight_lessons():
    assert len(LESSONS) == 8
    assert sorted(name for names in LESSONS.values() for name in names) == sorted(CATALOG)
    assert sorted(OWN_MODEL) == sorted(n for n in CATALOG if hasattr(load_experiment(n).settings, "run"))


@pytest.mark.parametrize("name", ["nothing", "..", "ladder%2f..%2fheads", "%2e%2e%2fetc"])
@pytest.mark.parametrize("ending", ["", "/picture"])
def test_only_experiments_have_results(lab_client, name, ending):
    assert lab_client.get(f"/api/learn/{name}{ending}").status_code == 404


@pytest.mark.parametrize("text", ["", "[]", '{"verdict": "supported"}', "{" * 100_000])
def test_a_damaged_result_counts_as_none(lab_client, tmp_path, text):
    folder = tmp_path / "experiments" / "ladder"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(text, encoding="utf-8")
    assert lab_client.get("/api/learn/ladder").status_code == 404
    assert lab_client.get("/api/learn").status_code == 200
