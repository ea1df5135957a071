"""Trackers receive every event of a run; the list of fields is what train() reports and what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from quill.tracking.jsonl import JsonLines, event_fits
from quill.tracking.loss_plot import LossPlot
from quill.tracking.samples import SampleLog
from quill.tracking.tracker import EVENT_FIELDS, CompositeTracker
from quill.training.loop import train


def test_every_tracker_receives_every_event_in_order(events):
    first, second = [], []
    events.send(CompositeTracker(first.append, None, CompositeTracker(second.append)), events.run)
    assert first == second == events.run


def test_the_trackers_of_a_run_write_their_own_files_only(events, tmp_path, loss_plots):
    events.send(
        CompositeTracker(JsonLines(tmp_path / "m"), SampleLog(tmp_path / "s"), LossPlot(tmp_path / "p")), events.run
    )
    assert {p.name for p in Path(tmp_path).iterdir()} == {"m", "s", "p"}


def test_the_listed_fields_are_those_that_a_run_reports(dataset, model_config, recipe):
    seen = []
    config, context = recipe()
    train(model_config, config, context, dataset, report=seen.append, sample=lambda model: "a text")
    assert {"start", "step", "evaluation", "sample", "end"} <= {event["event"] for event in seen}
    for event in seen:
        assert set(event) == {"event", "step", *EVENT_FIELDS[event["event"]]}
        assert event_fits(event, {"step": int} | EVENT_FIELDS[event["event"]])


def test_the_architecture_page_lists_the_same_fields():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (step.*) \|$", page, re.MULTILINE)
    listed = {kind: set(re.sub(r"\([^)]*\)", "", fields).replace(" ", "").split(",")) for kind, fields in rows}
    assert listed == {kind: {"step", *fields} for kind, fields in EVENT_FIELDS.items()}
