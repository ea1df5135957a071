"""What the page shows of a model is what `quill.lab` computes."""

from __future__ import annotations

import base64

import numpy as np
import pytest

import quill
from quill import lab
from quill.lab.ablation.ablating import editing_weights
from quill.lab.tuned_lens import NAME, train_tuned_lens
from quill.lab.windows import windows_of

PROMPT = "KING 3: now is the wint"


@pytest.fixture(params=["classic", "modern"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_attention_of_every_head_is_that_of_the_lab_within_a_step_of_its_colours(ask, runs, name):
    model = quill.load(runs.folder / "runs" / name, device="cpu")
    found = ask("/look/attention", text=PROMPT, model=name)
    maps = lab.attention_maps(model, PROMPT).maps
    T = len(PROMPT)
    assert (found["layers"], found["heads"], found["tokens"], found["left_out"]) == (2, 2, list(PROMPT), 0)
    packed_HN = np.frombuffer(base64.b64decode(found["packed"]), np.uint8).reshape(4, T * (T + 1) // 2)
    for packed_N, map_TS in zip(packed_HN, maps.values(), strict=True):
        assert np.abs(packed_N - 255 * np.sqrt(map_TS[np.tril_indices(T)])).max() <= 0.5001


def test_the_attention_of_one_token_is_exact(ask, runs, name):
    model = quill.load(runs.folder / "runs" / name, device="cpu")
    found = ask("/look/row", text=PROMPT, model=name, layer=1, head=0, position=5)
    map_TS = lab.attention_maps(model, PROMPT, layer=1, head=0).maps["1.0"]
    assert found["position"] == 5
    assert np.array_equal(np.float32(found["attends_to"]), map_TS[5, :6])
    assert np.array_equal(np.float32(found["attended_by"]), map_TS[5:, 5])


def test_value_weighted_attention_is_that_of_the_lab(ask, runs):
    model = quill.load(runs.classic, device="cpu")
    found = ask("/look/row", text=PROMPT, layer=0, head=1, kind="value-weighted")
    map_TS = lab.attention_maps(model, PROMPT, layer=0, head=1, kind="value-weighted").maps["0.1"]
    assert np.array_equal(np.float32(found["attends_to"]), map_TS[-1])


def test_of_a_long_text_the_last_context_is_looked_at(ask):
    found = ask("/look/attention", text=PROMPT * 3)
    assert "".join(found["tokens"]) == (PROMPT * 3)[-24:] and found["left_out"] == 3 * len(PROMPT) - 24


def test_the_logit_lens_is_that_of_the_lab(ask, runs, name):
    found = ask("/look/lens", text=PROMPT, model=name)
    expected = lab.lens(quill.load(runs.folder / "runs" / name, device="cpu"), PROMPT)
    assert found["trained"] and found["readings"] == ["embedding", "block 0", "block 1"]
    assert found["predicted"] == expected.predicted
    assert np.allclose(found["probability"], expected.probability_RT, atol=1e-4)


def test_a_tuned_lens_is_shown_once_one_of_these_weights_is_in_the_run(ask, runs):
    assert ask("/look/lens", text=PROMPT, tuned=True) == {"trained": False}
    model = quill.load(runs.classic, device="cpu")
    windows = windows_of(model.tokenizer.encode((runs.folder / "my.txt").read_text(encoding="utf-8")), 24, 8)
    trained = train_tuned_lens(model, windows, steps=3)
    lab.save_tuned_lens(trained, runs.classic / NAME)
    try:
        found = ask("/look/lens", text=PROMPT, tuned=True)
        assert found["tuned"] and found["predicted"] == lab.lens(model, PROMPT, tuned=trained).predicted
        lab.save_tuned_lens(trained, runs.modern / NAME)
        assert ask("/look/lens", text=PROMPT, tuned=True, model="modern") == {"trained": False}
    finally:
        for folder in (runs.classic, runs.modern):
            (folder / NAME).unlink(missing_ok=True)


def test_attribution_is_that_of_the_lab(ask, runs, name):
    found = ask("/look/attribution", text=PROMPT, model=name, position=7, token="n", versus="e")
    model = quill.load(runs.folder / "runs" / name, device="cpu")
    expected = lab.attribute(model, PROMPT, position=7, token="n", versus="e").numbers()
    assert found["token"] == "n" and found["versus"] == "e"
    assert found["parts"] == pytest.approx(expected["parts"]) and found["total"] == pytest.approx(expected["total"])


def test_with_parts_switched_off_the_page_looks_at_the_model_without_their_weights(ask, runs, name):
    parts = ["head:0.1", "feed_forward:1"] + (["ngrams"] if name == "modern" else [])
    model = quill.load(runs.folder / "runs" / name, device="cpu")
    before = ask("/look/lens", text=PROMPT, model=name)
    with editing_weights(model.model, parts):
        expected = lab.lens(model, PROMPT)
    found = ask("/look/lens", text=PROMPT, model=f"{name}~{','.join(parts)}")
    assert found["predicted"] == expected.predicted
    assert np.allclose(found["probability"], expected.probability_RT, atol=1e-4)
    assert ask("/look/lens", text=PROMPT, model=name) == before != found


def test_a_model_names_its_parts(ask):
    about = ask("/look/model", model="modern")
    assert about["id"] == "modern" and about["architecture"] == "modern" and about["context"] == 24
    assert about["parts"]["heads"] == [["head:0.0", "head:0.1"], ["head:1.0", "head:1.1"]]
    assert about["parts"]["ngrams"] == ["ngrams"] and ask("/look/model")["parts"]["ngrams"] == []


@pytest.mark.parametrize(
    ("path", "question", "says"),
    [
        ("/look/attention", {"text": "Ж"}, "'Ж'"),
        ("/look/attention", {"text": ""}, "empty"),
        ("/look/attention", {"text": 3}, "text"),
        ("/look/attention", {"text": "e", "colour": "red"}, "colour"),
        ("/look/attention", {"text": "e", "model": "classic~head:9.9"}, "from 0 to 1"),
        ("/look/attention", {"text": "e", "model": "classic~position:1"}, "no weights"),
        ("/look/attention", {"text": "e", "model": "classic~"}, "no part"),
        ("/switches/cost", {"off": ["x" * 1000]}, "40"),
        ("/switches/cost", {"off": ["head:9.9"]}, "from 0 to 1"),
        ("/look/row", {"text": "e", "layer": 2, "head": 0}, "from 0 to 1"),
        ("/look/row", {"text": "e", "layer": 10**30, "head": 0}, ""),
        ("/look/row", {"text": "e", "layer": 0, "head": True}, "head"),
        ("/look/row", {"text": "e", "layer": 0, "head": 0, "position": 7}, "position"),
        ("/look/lens", {}, "text"),
        ("/look/attribution", {"text": "e", "token": "in"}, "token"),
        ("/look/attribution", {"text": "e", "token": 1.5}, "token"),
        ("/switches/cost", {"off": "head:0.0"}, "off"),
        ("/jobs", {"job": "heads", "model": "classic~head:0.0"}, "whole"),
        ("/jobs", {"job": "format the disk"}, "job"),
        ("/jobs", {"job": "experiment", "experiment": "../.."}, "one of ladder"),
    ],
)
def test_a_question_that_cannot_be_answered_is_a_400_that_says_why(lab_client, path, question, says):
    response = lab_client.post(f"/api{path}", json=question)
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[1]", b"\xff", b"[" * 10_000])
def test_a_body_that_is_no_question_is_a_400(lab_client, body):
    headers = {"content-type": "application/json"}
    assert lab_client.post("/api/look/attention", content=body, headers=headers).status_code == 400
