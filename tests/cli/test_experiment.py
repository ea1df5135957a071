"""`quill experiment` lists the experiments, runs them, and refuses in one line what it cannot run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from quill.experiments.catalog import CATALOG, load_experiment
from quill.experiments.trained import ladder


@pytest.fixture
def small_ladder(monkeypatch, here):
    """The ladder with a default and a quick size of a few seconds; returns both settings."""
    sizes: dict[str, Any] = {
        "block_size": 8,
        "n_embd": 8,
        "n_head": 2,
        "n_layer": 2,
        "batch_size": 2,
        "seeds": 2,
        "windows": 8,
    }
    full, quick = (ladder.LadderSettings(**sizes, steps=steps) for steps in (3, 2))
    monkeypatch.setattr(ladder, "EXPERIMENT", dataclasses.replace(ladder.EXPERIMENT, settings=full, quick=quick))
    return full, quick


def test_without_a_name_the_experiments_are_listed_with_their_lessons(quill, here):
    code, out, error = quill("experiment")
    assert (code, error) == (0, "")
    words = " ".join(out.split())
    for name, (_, lesson) in CATALOG.items():
        assert f"quill experiment {name} {lesson}" in words
    assert "quill experiment all" in " ".join(out.split())  # lines wrap at the width of the terminal


def test_an_experiment_prints_its_verdict_and_writes_its_files(quill, here, small_ladder):
    code, out, _ = quill("experiment", "ladder", "--dataset=my.txt", "--seed=7")
    assert code == 0
    folder = here / "experiments" / "ladder"
    assert {file.name for file in folder.iterdir()} == {"result.json", "result.png", "result.html"}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (result["seed"], result["settings"]["steps"], result["settings"]["dataset"]) == (7, 3, "my.txt")
    assert f"verdict    {result['verdict']}" in out and out.startswith("experiment ladder: ")
    for line in ("claim ", "control ", "opposite ", "effect     one head over bigram: ", "result.html"):
        assert line in out


def test_quick_runs_the_smaller_size_in_another_folder(quill, here, small_ladder):
    assert quill("experiment", "--name=ladder", "--quick", "--dataset=my.txt", "--out_dir=small")[0] == 0
    result = json.loads((here / "small" / "ladder" / "result.json").read_text(encoding="utf-8"))
    assert result["settings"]["steps"] == 2 and not (here / "experiments").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["ladder", "--run=out"], "run='out' cannot be used: run must be left out: ladder trains its own models"),
        (["heads", "--run=absent"], "absent"),
        (["laddr"], "unknown experiment 'laddr' (did you mean 'ladder'?); the experiments are "),
        (["ladder", "--quik"], "did you mean '--quick'"),
        (["ladder", "mlp"], "takes one name, and 'ladder' and 'mlp' were given"),
        (["ladder", "--seed=-1"], "seed=-1 cannot be used: seed must be from 0"),
        (["ladder", "--dataset=nowhere.txt"], "nowhere.txt"),
        (["ladder", "--out_dir=my.txt"], "my.txt"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(refused, here, flags, words):
    assert words in refused("experiment", *flags)


def test_a_text_that_is_too_short_is_refused_in_one_line(quill, here):
    (here / "short.txt").write_text("To be, or not to be", encoding="utf-8")
    code, out, error = quill("experiment", "ladder", "--dataset=short.txt")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "short.txt is too short for this experiment" in error


@pytest.mark.parametrize("name", CATALOG)
def test_every_experiment_of_the_catalog_can_be_loaded_and_states_a_claim(name):
    experiment = load_experiment(name)
    assert experiment.name == name and experiment.claim.endswith(".")
    assert type(experiment.quick) is type(experiment.settings)
