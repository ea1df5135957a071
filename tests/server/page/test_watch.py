"""What the page shows of a run is what its files hold."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from quill.lab.film.film import load_film
from quill.server.app import create_app
from quill.server.served_models import ServedModels
from quill.tracking.jsonl import read_events


def test_the_events_of_a_run_are_those_of_its_file(ask, runs):
    found = ask("/watch/run", model="classic")
    assert found["events"] == read_events(runs.classic / "metrics.jsonl")
    assert (found["first"], found["step"], found["max_iters"]) == (0, 20, 20)
    assert not found["training"] and found["seconds_left"] is None
    assert found["film"] == str((runs.classic / "film.safetensors").stat().st_mtime_ns)


def test_only_events_after_the_known_ones_are_sent(ask, runs):
    events = read_events(runs.classic / "metrics.jsonl")
    known = ask("/watch/run")
    assert ask("/watch/run", after=len(events), mark=known["mark"])["events"] == []


def test_a_run_that_was_resumed_from_an_earlier_step_is_sent_from_its_start(ask, runs):
    file = runs.modern / "metrics.jsonl"
    whole = file.read_text(encoding="utf-8")
    known = ask("/watch/run", model="modern")
    lines = whole.splitlines()
    try:
        changed = {**json.loads(lines[-1]), "seconds": 1234.5}
        for text in (lines[:3], [*lines[:-1], json.dumps(changed)], [*lines[:-1], json.dumps(changed), lines[-2]]):
            file.write_text("\n".join(text) + "\n", encoding="utf-8")
            found = ask("/watch/run", model="modern", after=len(lines), mark=known["mark"])
            assert found["first"] == 0 and len(found["events"]) == len(text)
    finally:
        file.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize("after", [-1, 10**30])
def test_an_impossible_number_of_known_events_counts_as_none(ask, after):
    assert ask("/watch/run", after=after, mark=1)["first"] == 0


def test_the_lines_are_the_losses_of_guessing_and_of_counting(ask, runs):
    found = ask("/watch/lines")
    text = (runs.folder / "my.txt").read_text(encoding="utf-8")
    assert found["uniform"] == pytest.approx(math.log(len(set(text))))
    train, val = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    # Laplace: one is added to every count. The windows cover nearly the whole split, so the means are close.
    counts = {character: train.count(character) + 1 for character in set(text)}
    expected = -np.mean([math.log(counts[character] / sum(counts.values())) for character in val])
    assert found["unigram"] == pytest.approx(expected, abs=0.05)
    assert found["bigram"] < found["unigram"] < found["uniform"] and found["reason"] is None


def test_the_film_is_that_of_the_run_with_a_frame_for_each_step_that_was_recorded(ask, runs):
    film, found = load_film(runs.classic), ask("/watch/film", model="classic")
    assert [frame["step"] for frame in found["frames"]] == film.steps
    assert "".join(found["tokens"]) == film.text and (found["layers"], found["heads"]) == film.shape
    for index, frame in enumerate(found["frames"]):
        assert frame["sample"] == film.samples[index] and frame["roles"] == film.roles[index][0]
        assert frame["probe_loss"] == pytest.approx(film.probe_losses[index])
        assert frame["evaluation"] == vars(film.frames.frames[index].evaluation)
        ids = film.frames.frames[index].best_RT
        assert frame["predicted"] == [[film.frames.tokenizer.decode([int(i)]) for i in row] for row in ids]


def test_the_attention_of_the_film_is_that_of_its_file(ask, runs):
    frames = load_film(runs.classic).frames.frames
    found = np.frombuffer(ask("/watch/attention"), np.uint8)
    shape = (len(frames), *frames[0].attention_LHN.shape)
    assert np.array_equal(found.reshape(shape), np.stack([frame.attention_LHN for frame in frames]))


def test_a_run_without_a_film_has_no_frames_and_the_answer_says_why(runs, tmp_path):
    shutil.copytree(runs.classic, tmp_path / "out", ignore=shutil.ignore_patterns("film.safetensors"))
    with TestClient(create_app(ServedModels(tmp_path / "out")), base_url="http://127.0.0.1") as other:
        found = other.post("/api/watch/film", json={}).json()
        assert found["frames"] == [] and "film" in found["reason"]
        assert other.post("/api/watch/run", json={}).json()["film"] is None
