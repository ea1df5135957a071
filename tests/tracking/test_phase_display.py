"""The display of a long phase: nothing for a moment, then a line now and then, or one that is rewritten."""

import io

import pytest

from quill.tracking.phase_display import BAR, PhaseDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment be a person's terminal of 60 columns."""
    for name in ("CI", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")


def test_a_pipe_gets_a_line_every_two_seconds_and_nothing_for_less() -> None:  # U16
    stream, clock = io.StringIO(), Clock()
    with PhaseDisplay(stream, clock) as display:
        for tenth in range(50):
            clock.now = 100 + tenth / 10
            display("encoding", tenth / 50)
    assert stream.getvalue() == "quill: encoding, 40%\nquill: encoding, 80%\n"
    quick = io.StringIO()
    with PhaseDisplay(quick, clock) as display:
        display("encoding", 0.5)
    assert quick.getvalue() == ""


def test_a_terminal_gets_one_line_that_is_rewritten_and_erased() -> None:  # U16
    stream, clock = Terminal(), Clock()
    with PhaseDisplay(stream, clock) as display:
        display("reading", 0.1)
        assert stream.getvalue() == ""
        clock.now += 1
        display("reading", 0.25)
        clock.now += 0.01
        display("reading", 0.3)
        clock.now += 1
        display("encoding", 1.0)
    frames = stream.getvalue().split("\r")[1:]
    assert [frame.rstrip() for frame in frames] == [
        "━" * (BAR // 4) + "─" * (BAR - BAR // 4) + "  25%  reading",
        "━" * BAR + " 100%  encoding",
        "",
        "",
    ]
    assert [len(frame) for frame in frames] == [59, 59, 59, 0]


def test_a_line_is_never_wider_than_the_terminal_nor_moves_its_cursor() -> None:
    from rich.cells import cell_len

    stream, clock = Terminal(), Clock()
    with PhaseDisplay(stream, clock) as display:
        clock.now += 1
        display("reading \x1b[2J\n" + "红" * 100, 0.5)
    frame = stream.getvalue().split("\r")[1]
    assert cell_len(frame) == 59 and "\x1b" not in frame and "\n" not in frame


@pytest.mark.parametrize(("name", "value"), [("CI", "1"), ("JPY_PARENT_PID", "7"), ("TERM", "dumb")])
def test_a_terminal_that_cannot_rewrite_a_line_gets_lines(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    stream, clock = Terminal(), Clock()
    with PhaseDisplay(stream, clock) as display:
        clock.now += 2
        display("encoding", 0.5)
    assert stream.getvalue() == "quill: encoding, 50%\n"


def test_a_stream_that_is_closed_stops_no_work() -> None:
    stream, clock = io.StringIO(), Clock()
    with PhaseDisplay(stream, clock) as display:
        stream.close()
        clock.now += 5
        display("encoding", 0.5)
