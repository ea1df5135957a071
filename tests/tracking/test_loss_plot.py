"""loss.png shows both losses, is understood alone, and never stops a run."""

from __future__ import annotations

import math

import matplotlib.axes
import pytest

from quill.tracking import loss_plot
from quill.tracking.loss_plot import LossPlot, draw_losses, legend_corner, loss_range

pytestmark = pytest.mark.usefixtures("loss_plots")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """Draw events, and return the axes of the picture."""

    def draw(events):
        seen = []
        legend = matplotlib.axes.Axes.legend
        monkeypatch.setattr(
            matplotlib.axes.Axes, "legend", lambda axes, *a, **k: (seen.append(axes), legend(axes, *a, **k))[1]
        )
        assert draw_losses(events).startswith(b"\x89PNG")
        return seen[-1]

    return draw


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_picture_is_drawn_at_the_end_and_seldom_before(events, tmp_path):
    file = tmp_path / "loss.png"
    plot = LossPlot(file)
    events.send(plot, [events.start, events.evaluation(0, 4.2, seconds=1.0)])
    first = file.read_bytes()
    assert first.startswith(b"\x89PNG")
    plot(events.evaluation(5, 3.0, seconds=2.0))
    assert file.read_bytes() == first
    plot(events.evaluation(9, 2.0, seconds=40.0))
    second = file.read_bytes()
    assert second != first
    events.send(plot, [events.step(10), events.end(10)])
    assert file.read_bytes() != second
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_the_picture_of_a_resumed_run_holds_its_past(events, tmp_path):
    for name, history in (("whole", events.run), ("later", [])):
        resumed = [events.start | {"step": 50}, events.step(60, 1.9), events.end(60)]
        events.send(LossPlot(tmp_path / name, history), resumed)
    assert (tmp_path / "whole").read_bytes() != (tmp_path / "later").read_bytes()


def test_a_picture_that_cannot_be_replaced_does_not_stop_the_training(events, tmp_path, monkeypatch):
    def held_open(*args: object) -> None:
        raise PermissionError("a viewer holds it open")

    monkeypatch.setattr("os.replace", held_open)
    events.send(LossPlot(tmp_path / "loss.png"), events.run)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("no font"), MemoryError()])
def test_no_failure_to_draw_stops_the_training_and_one_message_says_so(events, tmp_path, monkeypatch, error):
    """R18."""

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(loss_plot, "draw_losses", fail)
    warnings: list[str] = []
    plot = LossPlot(tmp_path / "loss.png", warn=warnings.append)
    events.send(plot, [*events.run, *events.run])
    assert len(warnings) == 1 and warnings[0].startswith(f"{tmp_path / 'loss.png'} was not drawn: ")


def test_losses_that_are_not_finite_can_be_drawn(events):
    odd = [events.start, events.step(1, math.nan), events.evaluation(1, math.nan), events.step(2), events.end(2)]
    assert draw_losses(odd).startswith(b"\x89PNG")
    assert draw_losses([events.step(1)]).startswith(b"\x89PNG")
    assert draw_losses([events.start, events.evaluation(1, 3.0) | {"train_loss": None}]).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["红楼梦", "Ünï ☃ 𝔘", "a $x_ and $", "\\frac{", "x" * 500, "two\nlines"])
def test_any_name_can_be_a_title(events, drawn, name):
    """T10: each Chinese character was a warning, and warnings are errors in these tests."""
    title = drawn([event | {"dataset": name} if event["event"] == "start" else event for event in events.run])
    title = title.get_title(loc="left")
    assert title.startswith("Loss of a GPT with 1.23 M parameters on " + name[:3]) and len(title) < 90


def test_the_plot_has_a_title_axis_labels_and_a_legend(events, drawn):
    """U18."""
    axes = drawn(events.run)
    assert axes.get_title(loc="left") == "Loss of a GPT with 1.23 M parameters on mine"
    assert axes.get_xlabel() == "optimizer step" and axes.get_ylabel() == "loss (nats per token)"
    assert labels(axes) == [
        "training batches",
        "training (estimate on about 1,000 tokens)",
        "validation (whole split, 1,000 tokens)",
        "lowest: 2.5000 at step 50",
    ]
    part = [e | {"whole_split": False, "val_tokens": 640} if e["event"] == "evaluation" else e for e in events.run]
    assert "validation (estimate on 640 of 1,000 tokens)" in labels(drawn(part))


def test_two_evaluations_are_two_points_and_no_straight_line(events, drawn):
    """U18."""
    widths = {line.get_label(): (line.get_linewidth(), line.get_marker()) for line in drawn(events.run).lines}
    assert widths["validation (whole split, 1,000 tokens)"] == (0, "o")
    three = [*events.run[:-1], events.evaluation(60, 2.4)]
    assert drawn(three).lines[2].get_linewidth() > 0


def test_the_losses_after_the_beginning_fill_the_axis(events, drawn):
    """U18: with the first loss on the axis, what matters sat in its bottom third."""
    losses = [(step, 1.4 + 2.8 * 0.99**step) for step in range(0, 1001, 10)]
    assert loss_range(losses) == pytest.approx((1.4 - 0.1 * 2.8 * 0.99**100, 1.4 + 1.1 * 2.8 * 0.99**100), abs=1e-3)
    axes = drawn([events.start, *(events.step(step, loss) for step, loss in losses[1:]), events.evaluation(0, 4.2)])
    low, high = axes.get_ylim()
    assert low < 1.4 < high < 2.7 and "above the axis: up to 4.20 (step 0)" in labels(axes)


@pytest.mark.parametrize("losses", [[4.0, 3.0, 2.0], [3.0] * 50, [2.0 + n / 10 for n in range(20)], []])
def test_a_run_without_a_high_beginning_is_shown_whole(losses):
    assert loss_range(list(enumerate(losses))) is None


@pytest.mark.parametrize(
    ("losses", "corner"),
    [([4.2, 1.6, 1.5], "upper right"), ([4.2, 1.5, 1.7], "lower left"), ([], "upper right")],
)
def test_the_legend_leaves_the_corner_into_which_the_validation_loss_rises(losses, corner):
    assert legend_corner(losses, (0.5, 1.8)) == corner
