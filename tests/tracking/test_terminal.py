"""Plain lines tell the whole story of a run; the time left follows the pace."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from quill.tracking.live_display import LiveDisplay
from quill.tracking.run_status import RunStatus, format_end, format_start
from quill.tracking.terminal import PlainDisplay, choose_display, printable
from quill.units import format_duration


@pytest.fixture
def plain(events):
    """Return what plain lines show of events."""

    def show(told) -> str:
        stream = io.StringIO()
        with PlainDisplay(stream) as display:
            events.send(display, told)
        return stream.getvalue()

    return show


def test_plain_lines_report_the_whole_run_without_control_characters(events, plain):
    text = plain([*events.run[:-1], events.warning(50, "it overfits"), events.end(50)])
    assert text.isprintable() is False and "\x1b" not in text and "\r" not in text
    for words in ("my own words", "1.23 M parameters", "validation loss 2.500", "best so far", "| the king",
                  "warning: it overfits", "finished at step 50", "best validation loss 2.5000"):  # fmt: skip
        assert words in text


def test_an_estimated_loss_is_labelled(events, plain):
    estimated = [event | {"whole_split": False} if event["event"] == "evaluation" else event for event in events.run]
    assert plain(estimated).count("(estimate)") >= 1
    assert "validation loss 2.5000 (estimate) at step 50" in plain(estimated)
    assert "(estimate)" not in plain(events.run)


def test_plain_lines_are_few(events, plain):
    text = plain([events.start, *(events.step(n, seconds=n / 100) for n in range(1, 2001))])
    assert len(text.splitlines()) < 10
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_time_left_is_the_pace_times_the_steps_left(events, plain):
    told = [events.start, events.evaluation(0, 4.0, seconds=30.0)]
    text = plain([*told, events.step(10, seconds=31.0), events.step(20, seconds=37.0)])
    assert "step  10 of 100   loss 2.000   1,000 tokens/s   46 s left" in text
    assert "step  20 of 100   loss 2.000   1,000 tokens/s   48 s left" in text


@pytest.mark.parametrize(("steps", "words"), [(21, "under 1 s left"), (25, "3 s left"), (60, "26 s left")])
def test_both_displays_show_the_time_left_in_whole_seconds(events, plain, steps, words):
    told = [events.start | {"max_iters": steps}, events.step(10, seconds=0.0), events.step(20, seconds=6.42)]
    assert plain(told).endswith(f" tokens/s   {words}\n")
    with LiveDisplay(Console(file=io.StringIO(), width=80), clock=lambda: 0.0) as display:
        events.send(display, told)
        assert display.frame()[0].plain.endswith(f"step 20/{steps}  {words}")


def test_a_run_that_is_replanned_is_shown_with_its_new_length(events, plain):
    planned = [events.start, events.step(10), events.plan(10, 60), events.step(20, seconds=7.0)]
    assert "step 20 of 60   loss 2.000   1,000 tokens/s   24 s left" in plain(planned)
    assert events.start["max_iters"] == 100


def seconds_left(events, told) -> float | None:
    status = RunStatus()
    events.send(status.update, told)
    return status.seconds_left()


def test_the_time_left_follows_a_machine_that_becomes_slower(events):
    """U4: the pace of the whole run so far promised too little."""
    fast = [events.start | {"max_iters": 1000}, *(events.step(n, seconds=n / 10) for n in range(10, 110, 10))]
    assert seconds_left(events, fast) == pytest.approx(90.0)
    slow = [events.step(n, seconds=10 + (n - 100) * 1.0) for n in range(110, 210, 10)]
    assert seconds_left(events, [*fast, *slow]) == pytest.approx(800.0)


def test_the_time_left_never_exceeds_a_deadline(events):
    """U4: "2 min 12 s left" stood on the screen when the time was up."""
    told = [events.start | {"deadline": 60.0}, events.step(10, seconds=20.0), events.step(20, seconds=40.0)]
    assert seconds_left(events, told) == pytest.approx(20.0)
    assert seconds_left(events, [*told, events.plan(20, 25)]) == pytest.approx(10.0)
    assert seconds_left(events, [*told, events.step(21, seconds=70.0)]) == 0.0
    assert seconds_left(events, [events.start]) is None


def test_a_real_terminal_gets_the_live_display_and_nothing_else_does(monkeypatch):
    for name in ("CI", "JPY_PARENT_PID", "TERM"):
        monkeypatch.delenv(name, raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(choose_display(io.StringIO()), PlainDisplay)
    assert isinstance(choose_display(Terminal()), LiveDisplay)
    for name, value in (("CI", "true"), ("JPY_PARENT_PID", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert isinstance(choose_display(Terminal()), PlainDisplay)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "400 ms"), (59.4, "59 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_durations_are_formatted_in_words(seconds, words):
    assert format_duration(seconds) == words


def test_the_first_lines_of_a_run_show_its_corpus_model_and_steps(events):
    assert format_start(events.start) == [
        "corpus   my own words",
        "model    1.23 M parameters on cpu (2 threads), float32",
        "data     9,000 train / 1,000 val tokens, vocabulary 65",
        "run      100 steps of 512 tokens, in out",
    ]
    assert format_start(events.start | {"step": 50})[-1].endswith("in out, resumed from step 50")
    assert "float32, compiled" in format_start(events.start | {"compile": True})[1]


def test_the_last_line_says_how_and_why_a_run_ended(events):
    assert format_end(events.end(9, "patience")).startswith(
        "stopped early at step 9 after 900 ms (the validation loss no longer improved); best validation loss 2.5000"
    )
    assert format_end(events.end(9, "time")).startswith("stopped at step 9 after 900 ms (its time was up);")
    assert format_end(events.end(9, "interrupted", best=None)) == "interrupted at step 9 after 900 ms"


def test_control_characters_cannot_reach_a_terminal():
    assert printable("a\x1b[2Jb\r\n\tß☃\x07") == "a·[2Jb·\n\tß☃·"
