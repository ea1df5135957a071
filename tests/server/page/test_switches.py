"""The loss that parts cost when they are switched off is measured on the run's own validation split."""

from __future__ import annotations

import numpy as np
import pytest

import quill
from quill import lab
from quill.lab.ablation.ablating import editing_weights
from quill.server.served_models import EngineSettings, ServedModels, SwitchedModel
from quill.server.switched_models import MOST_KEPT


def test_the_cost_of_parts_is_that_of_ablation_on_the_validation_split(ask, runs):
    found = ask("/switches/cost", off=["head:0.1", "feed_forward:1"])
    model = quill.load(runs.classic, device="cpu")
    text = (runs.folder / "my.txt").read_text(encoding="utf-8")
    tokens = model.tokenizer.encode(text)
    expected = lab.ablate(model, ["head:0.1", "feed_forward:1"], tokens[int(0.9 * len(tokens)) :], windows=32)
    assert found["off"] == ["head:0.1", "feed_forward:1"]
    for name in ("mean", "low", "high"):
        assert found["cost"][name] == pytest.approx(getattr(expected.cost, name), abs=1e-6)
    assert found["loss_intact"] == pytest.approx(expected.intact_N.mean(), abs=1e-6)
    assert found["loss_ablated"] - found["loss_intact"] == pytest.approx(found["cost"]["mean"], abs=1e-9)
    assert found["cost"]["low"] <= found["cost"]["mean"] <= found["cost"]["high"]


def test_nothing_switched_off_costs_nothing(ask):
    assert ask("/switches/cost", off=[])["cost"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "level": 0.95}


def test_without_the_text_of_the_run_the_cost_is_not_measured_and_the_answer_says_why(ask, runs):
    text, hidden = runs.folder / "my.txt", runs.folder / "hidden.txt"
    data, elsewhere = runs.folder / "data", runs.folder / "elsewhere"
    text.rename(hidden)
    data.rename(elsewhere)
    try:
        found = ask("/switches/cost", off=["head:0.0"])
        assert found["measured"] is False and "my.txt" in found["reason"]
    finally:
        hidden.rename(text)
        elsewhere.rename(data)
    assert ask("/switches/cost", off=["head:0.0"])["measured"] is True


def logits(ask_for, text):
    """Return the logits after a text that the engine of a served model computes."""
    model = ask_for()
    batch = model._make_batch()
    return batch.logits(model.checkpoint.tokenizer.encode(text).tolist())


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("name", ["classic", "modern"])
def test_every_engine_computes_the_model_without_the_parts_of_its_id(runs, name, engine):
    served = ServedModels(runs.folder / "runs", EngineSettings(engine=engine))
    parts = ["head:1.0", "feed_forward:0"] + (["ngrams"] if name == "modern" else [])
    model = quill.load(runs.folder / "runs" / name, device="cpu")
    with editing_weights(model.model, parts):
        expected = model.logits("KING 3").numpy()
    found = logits(lambda: served.get(f"{name}~{','.join(parts)}"), "KING 3")
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(logits(lambda: served.get(name), "KING 3") - model.logits("KING 3").numpy()).max() < 1e-4


def test_the_order_of_the_parts_does_not_matter_and_a_model_is_made_once(runs):
    served = ServedModels(runs.folder / "runs")
    one, other = served.get("classic~head:0.0,head:1.1"), served.get("classic~head:1.1,head:0.0,head:1.1")
    assert one is other and one.hash != served.get("classic").hash
    assert isinstance(one, SwitchedModel) and one.whole is served.get("classic")


def test_a_server_keeps_a_few_models_with_parts_switched_off(runs):
    served = ServedModels(runs.folder / "runs")
    first = served.get("classic~head:0.0")
    others = [served.get(f"classic~block:{i % 2},head:{i // 2 % 2}.{i % 2}") for i in range(MOST_KEPT - 1)]
    assert served.get("classic~head:0.0") is first
    served.get("classic~feed_forward:0")
    assert served.get("classic~head:0.0") is first and others[0] not in served.loaded()
    assert "classic~head:0.0" not in served.ids()


def test_completions_take_the_id_of_a_model_with_parts_switched_off(lab_client):
    body = {"prompt": "KING 3", "max_tokens": 8, "temperature": 0}
    whole = lab_client.post("/v1/completions", json={**body, "model": "classic"}).json()
    found = lab_client.post("/v1/completions", json={**body, "model": "classic~block:0,block:1"}).json()
    assert found["choices"][0]["text"] != whole["choices"][0]["text"]
    response = lab_client.post("/v1/completions", json={**body, "model": "classic~head:7.0"})
    assert response.status_code == 400 and "layer" in response.json()["error"]["message"]
