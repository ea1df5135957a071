"""The live picture fits the terminal, is redrawn in place whatever its size becomes, and cuts no number."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from quill import process
from quill.tracking.live_display import SPINNER, LiveDisplay
from quill.tracking.live_region import LiveRegion
from quill.tracking.terminal_plot import draw_curve


def console_of(stream: io.StringIO, width: int = 80, height: int = 30, **settings) -> Console:
    size = {"width": width, "height": height}
    return Console(file=stream, force_terminal=True, legacy_windows=False, **size, **settings)


@pytest.fixture
def frame(events):
    """Return the picture after some events, as lines of text."""

    def show(told, width: int = 80, height: int = 30, history=(), now: float = 0.0) -> list[str]:
        with LiveDisplay(console_of(io.StringIO(), width, height), history, clock=lambda: now) as display:
            events.send(display, told)
            return [line.plain for line in display.frame()]

    return show


def is_curve(text: str) -> bool:
    return any(0x2800 < ord(c) <= 0x28FF for c in text)


def test_the_picture_shows_progress_curve_speed_best_and_sample(events, frame):
    text = "\n".join(frame(events.run[:-1]))
    for words in ("step 50/100", "left", "1,000 tokens/s", "best 2.500 at step 50", "the king", "4.20│",
                  "sample at step 50"):  # fmt: skip
        assert words in text
    assert is_curve(text)


def test_an_estimated_loss_is_labelled(events, frame):
    estimated = [event | {"whole_split": False} if event["event"] == "evaluation" else event for event in events.run]
    assert "validation 2.500 (estimate)" in frame(estimated[:-1])[1] and "(estimate)" not in frame(events.run[:-1])[1]


def test_a_run_that_is_replanned_is_shown_with_its_new_length(events, frame):
    planned = [events.start, events.step(10), events.plan(10, 60), events.step(20, seconds=7.0)]
    assert "step 20/60  24 s left" in frame(planned)[0]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 50), (40, 12), (20, 8), (200, 10), (10, 4), (3, 2)])
@pytest.mark.parametrize("count", [1, 4, 6, None])
def test_the_picture_fits_the_terminal(events, frame, width, height, count):
    long = events.sample(60, "x\ty" * 500 + "\n" * 40 + "漢字" * 90)
    told = [*events.run[:-1], long] if count is None else events.run[:count]
    lines = frame(told, width, height)
    assert len(lines) < height or len(lines) == 2
    assert max(Text(line).cell_len for line in lines) < width


def test_the_picture_keeps_its_height_while_it_grows(events, frame):
    assert len({len(frame(events.run[: n + 1])) for n in range(len(events.run) - 1)}) == 1


@pytest.mark.parametrize("width", range(20, 121))
def test_no_number_is_cut_at_any_width(events, frame, width):
    """U5: "6,005 to…"."""
    told = [
        events.start | {"max_iters": 123_456},
        *events.run[1:3],
        events.step(98_765) | {"tokens_per_second": 54_321.0},
    ]
    bar, numbers = frame([*told, events.evaluation(98_765, 2.5) | {"whole_split": False}], width)[:2]
    assert "…" not in bar + numbers
    assert re.fullmatch(r"([━─]+ )?step 98765/123456(  \d+ min \d\d s left)?", bar)
    parts = ["training 2.000", "validation 2.500 (estimate)", "best 2.500 at step 98765", "54,321 tokens/s"]
    assert set(numbers.split("   ")) <= {*parts, ""}
    assert ("validation 2.500 (estimate)" in numbers) == (width > 27)


@pytest.mark.parametrize("width", range(20, 81))
def test_the_losses_of_the_texts_of_a_mixture_are_named_as_far_as_they_fit(events, frame, width):
    losses = {"val_losses": {"a.txt": 2.0, "letters/": None, "long/**/*.md": 3.25}}
    told = [*events.run[:4], events.evaluation(50, 2.5) | losses]
    shown = frame(told, width)[2]
    names = ["a.txt 2.000", "a.txt 2.000, letters/ nan", "a.txt 2.000, letters/ nan, long/**/*.md 3.250"]
    lines = [f"each text: {name}{f' and {2 - n} more' if n < 2 else ''}" for n, name in enumerate(names)]
    fitting = [line for line in lines if len(line) < width]
    assert shown == fitting[-1] if fitting else "each text" not in shown
    assert len(frame(told, width, 3)) == 2


def test_before_the_first_loss_a_spinner_turns(events, frame):
    """U16."""
    seen = {frame([events.start], now=now)[1] for now in (0.0, 0.25, 0.5)}
    assert seen == {f"{SPINNER[n]} starting …" for n in (0, 2, 4)}


def test_the_curve_of_a_resumed_run_is_not_squashed_before_its_first_step(events, frame):
    """U6: the picture spanned one step, so the whole past was drawn into its last column."""
    history = [events.start, *(events.step(n, 4 - n / 30) for n in range(5, 51, 5))]
    for told in ([], [events.step(55)]):
        lines = frame([events.start | {"step": 50}, *told], history=history)
        curves = [line for line in lines if "│" in line]
        columns = {column for line in curves for column, c in enumerate(line) if is_curve(c)}
        assert len(columns) > 30 and "step 5" in lines[0]


def test_a_long_run_fills_its_picture_from_the_beginning(events, frame):
    long_run = [events.start | {"max_iters": 100_000}, *(events.step(n, 4 - n / 100) for n in range(1, 101))]
    assert max(len(line.rstrip()) for line in frame(long_run) if "│" in line) > 40


def test_a_stored_null_does_not_break_the_picture(events, frame):
    history = [events.start, events.step(10, None), events.evaluation(10, 3.0)]
    assert frame([events.start | {"step": 20}, events.step(30, None)], history=history)


# ---- drawing in place ----


class Screen(io.StringIO):
    """A terminal that knows what the display uses, and wraps its lines again when it is resized, as most do."""

    def __init__(self, width: int, height: int = 30) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.rows: list[tuple[str, bool]] = [("", False)]  # its characters, and whether the row below goes on
        self.row = self.column = 0
        self.hidden = False

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|[\r\n]|[^\x1b\r\n]", text):
            if part == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append(("", False))
            elif part == "\r":
                self.column = 0
            elif part == "\x1b[1A":
                self.row = max(0, self.row - 1)
            elif part == "\x1b[2K":
                self.rows[self.row] = ("", False)
            elif part in ("\x1b[?25l", "\x1b[?25h"):
                self.hidden = part.endswith("l")
            else:
                assert len(part) == 1, part
                self.put(part)
        return len(text)

    def put(self, character: str) -> None:
        if self.column == self.width:
            self.rows[self.row] = (self.rows[self.row][0], True)
            self.write("\n")
        text = self.rows[self.row][0].ljust(self.column)
        self.rows[self.row] = (text[: self.column] + character + text[self.column + 1 :], False)
        self.column += 1

    def resize(self, width: int) -> None:
        lines, line = [], ""
        for text, wraps in self.rows[: self.row + 1]:  # below the cursor nothing is left
            line += text
            if not wraps:
                lines, line = [*lines, line], ""
        self.width, self.rows = width, []
        for line in lines:
            pieces = [line[i : i + width] for i in range(0, len(line), width)] or [""]
            self.rows += [(piece, n < len(pieces)) for n, piece in enumerate(pieces, start=1)]
        self.row, self.column = len(self.rows) - 1, len(self.rows[-1][0])  # the cursor stays behind the last text

    def lines(self) -> list[str]:
        assert not any(text.strip() for text, _ in self.rows[self.row + 1 :])
        return [text.rstrip() for text, _ in self.rows[: self.row + 1]]


@pytest.fixture
def screen():
    return Screen(80)


def console_on(screen: Screen) -> Console:
    return console_of(screen, screen.width, screen.height, color_system=None)


@pytest.mark.parametrize("widths", [(80, 40, 100), (100, 30, 31, 29, 120), (40, 80, 40, 80), (50, 50)])
def test_a_frame_replaces_the_one_before_also_after_resizing(screen, events, widths):
    """U5: after widening, stale lines of the old picture stayed above."""
    screen.resize(widths[0])
    screen.write("$ quill train\n")
    console = console_on(screen)
    region, display = LiveRegion(console), LiveDisplay(console, clock=lambda: 0.0)
    for event in events.run[:-1]:
        display._add(event)
    for width in widths:
        screen.resize(width)
        console.width = width
        region.draw(display.frame())
        assert screen.lines() == ["$ quill train", *(line.plain.rstrip() for line in display.frame())]
        assert screen.hidden
    region.finish()
    assert screen.lines()[-1] == "" and not screen.hidden


def test_lines_that_stay_are_printed_above_the_picture(screen):
    region = LiveRegion(console_on(screen))
    region.draw([Text("one"), Text("two")])
    region.print_above(Text("warning: " + "x" * 100))
    region.draw([Text("three"), Text("four")])
    assert screen.lines() == ["warning: " + "x" * 71, "x" * 29, "three", "four"]


def test_the_answer_to_a_signal_stands_between_two_pictures(screen, monkeypatch):  # U3
    region = LiveRegion(console_on(screen))
    region.draw([Text("one"), Text("two")])
    monkeypatch.setattr(process, "_is_terminal", lambda descriptor: True)
    monkeypatch.setattr(process.os, "write", lambda descriptor, data: screen.write(data.decode()))
    process.say("stopping")
    for lines in (["three", "four"], ["five", "six"]):
        region.draw([Text(line) for line in lines])
        assert screen.lines() == ["one", "two", "quill: stopping", *lines]


def test_a_whole_run_leaves_its_last_picture_and_a_line_and_shows_the_cursor(screen, events):
    with LiveDisplay(console_on(screen), clock=lambda: 0.0) as display:
        events.send(display, [*events.run[:-1], events.warning(50, "it overfits"), events.end(50)])
    text = "\n".join(screen.lines())
    assert text.count("step 50/100") == 1 and text.index("it overfits") < text.index("step 50/100")
    assert screen.lines()[-2].startswith("finished at step 50") and not screen.hidden


def test_a_run_that_fails_restores_the_terminal(screen, events):
    with pytest.raises(KeyError), LiveDisplay(console_on(screen)) as display:
        events.send(display, events.run[:-1])
        raise KeyError
    assert not screen.hidden and screen.lines()[-1] == ""


def test_a_terminal_that_is_gone_does_not_stop_a_run(screen, events):
    with LiveDisplay(console_on(screen)) as display:
        events.send(display, events.run[:3])
        screen.close()
        events.send(display, [*events.run[3:-1], events.warning(50, "nobody reads this"), events.end(50)])


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_no_color_is_honoured(events, environment):
    """U5."""
    stream = io.StringIO()
    console = console_of(stream, color_system="truecolor", _environ=environment)
    with LiveDisplay(console, clock=lambda: 0.0) as display:
        events.send(display, [*events.run[:-1], events.warning(50, "it overfits")])
    colors = re.findall(r"\x1b\[[\d;]*3[0-7][\d;]*m|\x1b\[[\d;]*9[0-7][\d;]*m", stream.getvalue())
    assert bool(colors) == (not environment)


# ---- the curve ----


def test_the_curve_falls_from_the_upper_left_to_the_lower_right():
    lines = [str(line) for line in draw_curve([(0, 4.0), (100, 2.0)], [], width=40, height=6, last_step=100)]
    assert len(lines) == 6 and lines[0].startswith(" 4.00│") and lines[-1].startswith(" 2.00│")
    cells = [[column for column, c in enumerate(line) if is_curve(c)] for line in lines]
    assert all(cells) and cells == sorted(cells)
    assert cells[-1][-1] == 40 - 1


def test_a_curve_of_one_point_or_of_no_finite_numbers_can_be_drawn():
    nan, inf = float("nan"), float("inf")
    assert len(draw_curve([(0, 3.0)], [], width=20, height=4, last_step=10)) == 4
    assert len(draw_curve([(0, nan), (1, inf)], [], width=20, height=4, last_step=10)) == 4
    assert len(draw_curve([(5, 2.0), (5, 2.0)], [(5, 2.0)], width=5, height=4, last_step=1)) == 4
