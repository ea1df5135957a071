"""A run on a mixture: the same name in every command, the loss of each text, and exact resumption."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import quill
from quill.checkpoints.run_folder import find_checkpoint
from quill.data.dataset import prepare_dataset
from quill.errors import ConfigError, CorpusError
from quill.tracking.jsonl import read_events

start: Any = quill.run
MIXTURE = "my.txt:3,other/:1"
TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "dropout": 0.0, "batch_size": 4, "max_iters": 8,
    "eval_interval": 4, "eval_iters": 50, "sample_tokens": 4, "warmup_iters": 2, "device": "cpu", "progress": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def texts(here: Path) -> Path:
    """A folder `other` beside my.txt, with characters that my.txt has not."""
    (here / "other").mkdir()
    (here / "other/a.txt").write_text("Ärger, Öl und Übung. " * 20, encoding="utf-8")
    (here / "other/b.txt").write_text("Noch ein Text. " * 20, encoding="utf-8")
    return here


def weights(out_dir: str) -> bytes:
    return (find_checkpoint(Path(out_dir), "last") / "model.safetensors").read_bytes()


@pytest.mark.parametrize("data_order", ["random", "shuffled"])
def test_a_run_reports_the_loss_of_each_text_and_their_weighted_mean(data_order: str) -> None:
    run = start(dataset=MIXTURE, data_order=data_order, **TINY)
    assert yaml.safe_load(Path("out/config.yaml").read_text("utf-8"))["dataset"] == MIXTURE
    events = read_events(Path("out/metrics.jsonl"))
    assert events[0]["corpus_note"].startswith("75 % my.txt, ") and "; 25 % other/, " in events[0]["corpus_note"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    assert [event["step"] for event in evaluations] == [0, 4, 8]
    for event in evaluations:
        losses = event["val_losses"]
        assert [*losses] == ["my.txt", "other/"] and event["whole_split"]
        assert event["val_loss"] == pytest.approx(0.75 * losses["my.txt"] + 0.25 * losses["other/"], rel=1e-12)
    model = run.load("last")
    for path in ("my.txt", "other/"):
        prepared = prepare_dataset(path, tokenizer=model.tokenizer)
        found = quill.evaluate_split(model.model, prepared.val, model.tokenizer)
        assert found.loss == pytest.approx(evaluations[-1]["val_losses"][path], rel=1e-6)


def test_a_mixture_of_one_text_in_two_names_has_the_loss_of_that_text() -> None:
    shutil.copy("my.txt", "same.txt")
    start(dataset="my.txt:1,same.txt:3", **TINY)
    evaluation = [e for e in read_events(Path("out/metrics.jsonl")) if e["event"] == "evaluation"][-1]
    assert len({*evaluation["val_losses"].values(), evaluation["val_loss"]}) == 1
    assert evaluation["bits_per_character"] == pytest.approx(evaluation["val_loss"] / math.log(2))


@pytest.mark.parametrize("data_order", ["random", "shuffled"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(data_order: str) -> None:
    settings = TINY | {"dataset": MIXTURE, "data_order": data_order}
    start(**settings, out_dir="whole")
    stopped = start(**settings, out_dir="parts", callback=lambda event: "enough" if event["step"] == 4 else None)
    assert stopped.step == 5 and weights("parts") != weights("whole")
    start(resume=True, out_dir="parts", progress=False)
    assert weights("parts") == weights("whole")


def test_a_run_is_resumed_with_the_same_texts_and_shares_only(here: Path) -> None:
    start(dataset=MIXTURE, **TINY)
    more = {"resume": True, "max_iters": 9, "progress": False}
    for other in ("my.txt:2,other/:1", "other/:3,my.txt:1"):
        with pytest.raises(ConfigError, match="the text"):
            start(dataset=other, **more)
    assert start(dataset="my.txt:0.75,other/:0.25", **more).step == 9
    (here / "elsewhere").mkdir()
    for name in ("my.txt", "other", "out"):
        (here / name).rename(here / "elsewhere" / name)
    assert start(resume=True, max_iters=10, out_dir="elsewhere/out", progress=False).step == 10


def test_the_text_of_a_mixture_may_be_gone_when_its_tokens_are_prepared(here: Path) -> None:
    start(dataset=MIXTURE, **TINY)
    (here / "my.txt").unlink()
    shutil.rmtree(here / "other")
    assert start(resume=True, max_iters=9, progress=False).step == 9


def test_every_command_takes_the_mixture_of_a_run(quill: Any) -> None:
    start(dataset=MIXTURE, **TINY)
    code, out, _ = quill("prepare", f"--dataset={MIXTURE}")
    assert code == 0 and out.startswith("corpus      75 % my.txt, ") and "\n            25 % other/, " in out
    last = [e for e in read_events(Path("out/metrics.jsonl")) if e["event"] == "evaluation"][-1]
    for flags in ([], [f"--dataset={MIXTURE}"]):
        code, out, _ = quill("evaluate", "--checkpoint=last", "--json", *flags)
        facts = json.loads(out)
        assert code == 0 and facts["val_loss"] == pytest.approx(last["val_loss"])
        assert facts["val_losses"] == pytest.approx(last["val_losses"])
    code, out, _ = quill("evaluate", "--checkpoint=last")
    assert f"of other/           {last['val_losses']['other/']:.4f}" in out
    assert quill("inspect", "--show=attention")[0] == 0
    assert "my.txt and 1 more, " in quill("estimate", "--config=debug", f"--dataset={MIXTURE}")[1]
    code, _, error = quill("experiment", "heads", f"--dataset={MIXTURE}")
    assert code == 2 and "is a mixture, which only training and its evaluation take" in error
    code, _, error = quill("train", "--dataset=my.txt:0.7,other/", "--out_dir=new")
    assert code == 2 and error.count("\n") == 1 and "'other/' has no weight in a mixture" in error
    assert not Path("new").exists()


def test_a_model_is_tuned_on_a_mixture_with_characters_of_its_own() -> None:
    start(dataset="my.txt", **TINY)
    tuned = start(dataset=MIXTURE, init_from="out", vocab="extend", max_iters=2, out_dir="tuned", progress=False)
    before, after = (quill.load(folder).tokenizer.to_json()["characters"] for folder in ("out", "tuned"))
    assert after.startswith(before) and {*"ÄÖÜ"} <= {*after[len(before) :]} and tuned.step == 2
    with pytest.raises(CorpusError, match="mixture"):
        quill.load("tuned").evaluate(MIXTURE)
