"""metrics.jsonl holds every event, says what is damaged, and keeps nothing that a crash left behind."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from quill.errors import CheckpointError, TrainingError
from quill.tracking.jsonl import JsonLines, find_gap, read_events
from quill.tracking.samples import SampleLog
from quill.tracking.tracker import EVENT_FIELDS, CompositeTracker


def test_events_are_read_back_as_they_were_reported(events, tmp_path):
    events.send(JsonLines(tmp_path / "metrics.jsonl"), events.run)
    assert read_events(tmp_path / "metrics.jsonl", pytest.fail) == events.run


def test_numbers_that_are_not_finite_become_null(events, tmp_path):
    odd = [events.start, events.step(1, math.nan), events.step(2, math.inf) | {"more": {"norms": [1.0, -math.inf]}}]
    events.send(JsonLines(tmp_path / "m.jsonl"), odd)
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()
    stored = [json.loads(line, parse_constant=pytest.fail) for line in lines[1:]]
    assert [event["train_loss"] for event in stored] == [None, None] and stored[1]["more"] == {"norms": [1.0, None]}
    assert read_events(tmp_path / "m.jsonl", pytest.fail)[1:] == stored


def test_any_text_that_a_model_generates_can_be_stored(events, tmp_path):
    texts = ["König\u2028☃", "\udcff half a byte", "\x1b[2J"]
    stories = [events.start, *(events.sample(1, text) for text in texts)]
    events.send(JsonLines(tmp_path / "m.jsonl"), stories)
    assert [e["text"] for e in read_events(tmp_path / "m.jsonl")[1:]] == texts
    events.send(SampleLog(tmp_path / "samples.txt"), stories)
    assert "König" in (tmp_path / "samples.txt").read_text(encoding="utf-8")


def test_a_new_run_starts_its_files_again_and_a_resumed_one_drops_only_what_came_after(events, tmp_path):
    metrics, samples = tmp_path / "m.jsonl", tmp_path / "samples.txt"

    def trackers():
        history = read_events(metrics, pytest.fail)
        return CompositeTracker(JsonLines(metrics), SampleLog(samples, history))

    events.send(trackers(), events.run[:-1])
    with open(metrics, "a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')  # the crash
    events.send(trackers(), [events.start | {"step": 50}, events.step(60), events.sample(60, "goes on")])
    assert [e["step"] for e in read_events(metrics)] == [0, 0, 0, 50, 50, 50, 50, 60, 60]
    events.send(trackers(), [events.start | {"step": 50}])
    assert max(e["step"] for e in read_events(metrics)) == 50
    assert samples.read_text(encoding="utf-8") == "──── step 0 ────\nxq\n\n\n──── step 50 ────\nthe king\n\n"
    events.send(trackers(), [events.start])
    assert read_events(metrics) == [events.start] and samples.read_text(encoding="utf-8") == ""


def test_a_missing_file_has_no_events_and_one_that_cannot_be_read_is_named(tmp_path):
    assert read_events(tmp_path / "nothing.jsonl", pytest.fail) == []
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        (tmp_path / "metrics.jsonl").mkdir()
        read_events(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"\x00" * 40, b"\xff\xfe", b'{"event": "step", "st', b"[]", b"null", b"7", b"[" * 100_000, b'{"event": 5}',
        b'{"event": "step"}', b'{"event": "step", "step": "9"}', b'{"event": "end", "step": -1}', b'{"step": 9}',
    ],
    ids=repr,
)  # fmt: skip
def test_a_damaged_line_is_left_out_and_named(events, tmp_path, damage):
    """R10, R18."""
    file, warnings = tmp_path / "metrics.jsonl", []
    events.send(JsonLines(file), events.run)
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:3], damage, *lines[3:]]))
    assert read_events(file, warnings.append) == events.run
    assert warnings == [f"{file} is damaged: line 4 is not an event, and left out"]


def test_an_event_without_one_of_its_fields_is_damaged(events, tmp_path):
    """R18: a resume met a KeyError there."""
    for event in [*events.run, events.warning(3, "a"), events.plan(3, 90)]:
        for name in ("event", "step", *EVENT_FIELDS[event["event"]]):
            for wrong in ({}, {name: []}):
                changed = {k: v for k, v in event.items() if k != name} | wrong
                (tmp_path / "m").write_text(json.dumps(changed) + "\n", encoding="utf-8")
                warnings: list[str] = []
                assert read_events(tmp_path / "m", warnings.append) == [] and len(warnings) == 1


def test_kinds_of_events_that_are_not_known_are_kept(tmp_path):
    (tmp_path / "m").write_text('{"event": "mine", "step": 3}\n', encoding="utf-8")
    assert read_events(tmp_path / "m", pytest.fail) == [{"event": "mine", "step": 3}]


def test_several_damaged_lines_are_one_message_and_a_resume_drops_them(events, tmp_path):
    file, warnings = tmp_path / "metrics.jsonl", []
    events.send(JsonLines(file), events.run)
    good = file.read_bytes()
    file.write_bytes(b"one\n" + good + b"two\nthr")
    assert read_events(file, warnings.append) == events.run
    assert warnings == [f"{file} is damaged: line 1 and 1 more are not events, and left out"]
    events.send(JsonLines(file), [events.start | {"step": 50}])
    assert file.read_bytes().startswith(good) and read_events(file, pytest.fail)[-1]["event"] == "start"


def test_lines_that_are_missing_before_the_checkpoint_are_noticed(events):
    """R10: a file that was cut is still made of whole events."""
    assert find_gap(events.run, 50) is None and find_gap([], 0) is None
    assert "ends at step 0, and the checkpoint is of step 50" in (find_gap(events.run[:3], 50) or "")
    assert "begins with step 50" in (find_gap(events.run[3:], 50) or "")
    assert "no events of this run before step 50" in (find_gap([], 50) or "")


def test_the_file_is_forced_to_disk_at_evaluations_and_the_end_only(events, tmp_path, monkeypatch):
    synced = []
    tracker = JsonLines(tmp_path / "m")
    tracker(events.start)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(len((tmp_path / "m").read_bytes().splitlines())))
    events.send(tracker, events.run[1:])
    assert synced == [2, 5, 7]  # lines in the file at that time: both evaluations and the end


def test_a_full_disk_is_one_line_that_names_the_file(events):
    """R18."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no full device")
    with pytest.raises(TrainingError, match=r"^/dev/full cannot be written: No space left on device$"):
        JsonLines("/dev/full")(events.step(1))
