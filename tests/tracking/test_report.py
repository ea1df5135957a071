"""Laws of what a run leaves behind and shows: every event arrives, nothing a crash left behind counts twice."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from quill.errors import MissingDependencyError
from quill.tracking.jsonl import JsonLines, read_events
from quill.tracking.loss_plot import LossPlot, draw_losses
from quill.tracking.samples import Samples
from quill.tracking.tensorboard import TensorBoard
from quill.tracking.terminal import LiveDisplay, PlainDisplay, choose_display, describe_end, describe_start, printable
from quill.tracking.terminal_plot import draw_curve
from quill.tracking.tracker import fan_out
from quill.units import format_duration

START = {
    "event": "start", "step": 0, "max_iters": 100, "parameters": 1_234_567, "parameters_without_positions": 1_200_000,
    "device": "cpu (2 threads)", "dtype": "float32", "compile": False, "dataset": "mine", "corpus_note": "my own words",
    "vocab_size": 65, "train_tokens": 9000, "val_tokens": 1000, "tokens_per_step": 512, "out_dir": "out",
}  # fmt: skip


def step(number: int, loss: float = 2.0, seconds: float | None = None) -> dict:
    return {
        "event": "step", "step": number, "train_loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0,
        "tokens_per_second": 1000.0, "seconds": number / 10 if seconds is None else seconds,
    }  # fmt: skip


def evaluation(number: int, loss: float, best: bool = True, seconds: float | None = None) -> dict:
    return {
        "event": "evaluation", "step": number, "train_loss": loss - 0.1, "val_loss": loss, "bits_per_character": 3.0,
        "val_tokens": 1000, "whole_split": True, "best": best, "seconds": number / 10 if seconds is None else seconds,
    }  # fmt: skip


def sample(number: int, text: str) -> dict:
    return {"event": "sample", "step": number, "text": text}


def end(number: int, reason: str = "finished", best: float | None = 2.5) -> dict:
    return {
        "event": "end", "step": number, "reason": reason, "best_step": number, "best_val_loss": best,
        "seconds": number / 10, "checkpoint": "out/checkpoints/step-000100",
    }  # fmt: skip


RUN = [START, evaluation(0, 4.2), sample(0, "xq\n"), step(50), evaluation(50, 2.5), sample(50, "the king"), end(50)]


def tell(consumer, events) -> None:
    for event in events:
        consumer(event)


def test_every_consumer_gets_every_event_in_order():
    first, second = [], []
    tell(fan_out(first.append, None, second.append), RUN)
    assert first == second == RUN


def test_metrics_read_back_as_they_were_told(tmp_path):
    tell(JsonLines(tmp_path / "metrics.jsonl"), RUN)
    assert read_events(tmp_path / "metrics.jsonl") == RUN


def test_numbers_that_are_no_json_become_null(tmp_path):
    tell(JsonLines(tmp_path / "m.jsonl"), [START, step(1, math.nan), step(2, math.inf)])
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["train_loss"] for line in lines[1:]] == [None, None]


def test_any_text_a_model_writes_can_be_stored(tmp_path):
    texts = ["König\u2028☃", "\udcff half a byte", "\x1b[2J"]
    tell(JsonLines(tmp_path / "m.jsonl"), [START, *(sample(1, text) for text in texts)])
    assert [e["text"] for e in read_events(tmp_path / "m.jsonl")[1:]] == texts
    tell(Samples(tmp_path / "samples.txt"), [START, *(sample(1, text) for text in texts)])
    assert "König" in (tmp_path / "samples.txt").read_text(encoding="utf-8")


def test_a_new_run_starts_its_files_anew_and_a_resumed_one_drops_only_what_came_after(tmp_path):
    metrics, samples = tmp_path / "m.jsonl", tmp_path / "samples.txt"

    def consumers():
        history = read_events(metrics)
        return fan_out(JsonLines(metrics), Samples(samples, history))

    tell(consumers(), RUN[:-1])
    with open(metrics, "a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')  # the crash
    tell(consumers(), [START | {"step": 50}, step(60), sample(60, "goes on")])
    assert [e["step"] for e in read_events(metrics)] == [0, 0, 0, 50, 50, 50, 50, 60, 60]
    tell(consumers(), [START | {"step": 50}])
    assert max(e["step"] for e in read_events(metrics)) == 50
    assert samples.read_text(encoding="utf-8") == "──── step 0 ────\nxq\n\n\n──── step 50 ────\nthe king\n\n"
    tell(consumers(), [START])
    assert read_events(metrics) == [START] and samples.read_text(encoding="utf-8") == ""


def test_a_missing_file_has_no_events(tmp_path):
    assert read_events(tmp_path / "nothing.jsonl") == []


def test_the_picture_is_drawn_at_the_end_and_seldom_before(tmp_path):
    file = tmp_path / "loss.png"
    plot = LossPlot(file)
    tell(plot, [START, evaluation(0, 4.2, seconds=1.0)])
    first = file.read_bytes()
    assert first.startswith(b"\x89PNG")
    plot(evaluation(5, 3.0, seconds=2.0))
    assert file.read_bytes() == first
    plot(evaluation(9, 2.0, seconds=40.0))
    second = file.read_bytes()
    assert second != first
    tell(plot, [step(10), end(10)])
    assert file.read_bytes() != second
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_the_picture_of_a_resumed_run_holds_its_past(tmp_path):
    for name, history in (("whole", RUN), ("later", [])):
        tell(LossPlot(tmp_path / name, history), [START | {"step": 50}, step(60, 1.9), end(60)])
    assert (tmp_path / "whole").read_bytes() != (tmp_path / "later").read_bytes()


def test_a_picture_that_cannot_be_replaced_does_not_stop_the_training(tmp_path, monkeypatch):
    def held_open(*args: object) -> None:
        raise PermissionError("a viewer holds it open")

    monkeypatch.setattr("os.replace", held_open)
    tell(LossPlot(tmp_path / "loss.png"), RUN)


def test_losses_that_are_no_numbers_can_be_drawn():
    assert draw_losses([START, step(1, math.nan), evaluation(1, math.nan), step(2), end(2)]).startswith(b"\x89PNG")
    assert draw_losses([step(1)]).startswith(b"\x89PNG")


def test_tensorboard_gets_every_number_and_every_sample(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TensorBoard(tmp_path), RUN)
    stored = EventAccumulator(str(tmp_path))
    stored.Reload()
    assert [(e.step, e.value) for e in stored.Scalars("evaluation/val_loss")] == [(0, pytest.approx(4.2)), (50, 2.5)]
    assert {"step/learning_rate", "step/gradient_norm", "evaluation/bits_per_character"} <= set(
        stored.Tags()["scalars"]
    )


def test_missing_tensorboard_is_named_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


# ---- displays ----


def plain(events) -> str:
    stream = io.StringIO()
    with PlainDisplay(stream) as display:
        tell(display, events)
    return stream.getvalue()


def live(events, width: int = 80, height: int = 30) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=width, height=height, color_system=None, legacy_windows=False
    )
    with LiveDisplay(console, clock=lambda: 0.0) as display:
        tell(display, events)
    with console.capture() as picture:
        console.print(display)
    return picture.get()


def test_plain_lines_tell_the_whole_story_without_control_characters():
    text = plain([*RUN[:-1], {"event": "warning", "step": 50, "message": "it overfits"}, end(50)])
    assert text.isprintable() is False and "\x1b" not in text and "\r" not in text
    for words in ("my own words", "1.23 M parameters", "validation loss 2.500", "best so far", "| the king",
                  "warning: it overfits", "finished at step 50", "best validation loss 2.5000"):  # fmt: skip
        assert words in text


def test_an_estimated_loss_is_labelled_everywhere():
    estimated = [event | {"whole_split": False} if event["event"] == "evaluation" else event for event in RUN]
    for text in (plain(estimated), live(estimated)):
        assert text.count("(estimate)") >= 1
    assert "validation loss 2.5000 (estimate) at step 50" in plain(estimated)
    assert "(estimate)" not in plain(RUN) + live(RUN)


def test_plain_lines_are_few():
    text = plain([START, *(step(n, seconds=n / 100) for n in range(1, 2001))])
    assert len(text.splitlines()) < 10
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_time_left_is_the_pace_times_what_is_left():
    text = plain([START, evaluation(0, 4.0, seconds=30.0), step(10, seconds=31.0), step(20, seconds=37.0)])
    assert "step  10 of 100   loss 2.000   1,000 tokens/s   46 s left" in text
    assert "step  20 of 100   loss 2.000   1,000 tokens/s   48 s left" in text


def test_a_run_that_is_planned_anew_is_shown_with_its_new_length():
    planned = [START, step(10), {"event": "plan", "step": 10, "max_iters": 60}, step(20, seconds=7.0)]
    assert "step 20 of 60   loss 2.000   1,000 tokens/s   24 s left" in plain(planned)
    assert "step 20/60" in live(planned) and START["max_iters"] == 100


def test_the_live_picture_shows_progress_curve_speed_best_and_sample():
    text = live([*RUN[:-1]])
    for words in (
        "step 50/100",
        "left",
        "1,000 tokens/s",
        "best 2.500 at step 50",
        "the king",
        "4.20│",
        "what it writes at step 50",
    ):
        assert words in text
    assert any(0x2800 < ord(c) <= 0x28FF for c in text)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 50), (40, 12), (20, 8), (200, 10)])
@pytest.mark.parametrize("events", [[START], RUN[:4], RUN[:-1], [*RUN[:-1], sample(60, "x" * 500 + "\n" * 40)]])
def test_the_live_picture_fits_the_terminal(width, height, events):
    lines = live(events, width, height).split("\n")
    assert len(lines) <= max(height, 10)
    assert max(map(len, lines)) <= width


def test_the_live_picture_keeps_its_height_while_it_grows():
    heights = {live(RUN[: n + 1]).count("\n") for n in range(len(RUN) - 1)}
    assert len(heights) == 1


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


def test_the_curve_falls_from_the_upper_left_to_the_lower_right():
    lines = [str(line) for line in draw_curve([(0, 4.0), (100, 2.0)], [], width=40, height=6, last_step=100)]
    assert len(lines) == 6 and lines[0].startswith(" 4.00│") and lines[-1].startswith(" 2.00│")
    cells = [[column for column, c in enumerate(line) if 0x2800 < ord(c) <= 0x28FF] for line in lines]
    assert all(cells) and cells == sorted(cells)
    assert cells[-1][-1] == 40 - 1


def test_a_curve_of_one_point_or_of_no_numbers_is_still_a_picture():
    assert len(draw_curve([(0, 3.0)], [], width=20, height=4, last_step=10)) == 4
    assert len(draw_curve([(0, math.nan), (1, math.inf)], [], width=20, height=4, last_step=10)) == 4
    assert len(draw_curve([(5, 2.0), (5, 2.0)], [(5, 2.0)], width=5, height=4, last_step=1)) == 4


def test_a_stored_null_does_not_break_the_display_of_a_resumed_run():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=30, legacy_windows=False)
    history = [START, step(10) | {"train_loss": None}, evaluation(10, 3.0)]
    with LiveDisplay(console, history) as display:
        tell(display, [START | {"step": 20}, step(30)])
        console.print(display)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "400 ms"), (59.4, "59 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert format_duration(seconds) == words


def test_the_story_of_a_run_has_a_beginning_and_an_end():
    assert "going on from step 50" in describe_start(START | {"step": 50})[-1]
    assert "compiled" in " ".join(describe_start(START | {"compile": True}))
    assert "no longer improved" in describe_end(end(9, "patience"))
    assert describe_end(end(9, "interrupted", best=None)) == "interrupted at step 9 after 900 ms"


def test_control_characters_cannot_reach_a_terminal():
    assert printable("a\x1b[2Jb\r\n\tß☃\x07") == "a·[2Jb·\n\tß☃·"


def test_the_folder_of_the_files_is_all_that_is_written_to(tmp_path):
    tell(fan_out(JsonLines(tmp_path / "m"), Samples(tmp_path / "s"), LossPlot(tmp_path / "p")), RUN)
    assert {p.name for p in Path(tmp_path).iterdir()} == {"m", "s", "p"}


def test_a_long_run_fills_its_picture_from_the_beginning():
    long_run = [START | {"max_iters": 100_000}, *(step(n, 4 - n / 100) for n in range(1, 101))]
    widest = max(line.rstrip().count("") for line in live(long_run).splitlines() if "│" in line)
    assert widest > 40
