"""The style of pictures."""

from __future__ import annotations

import matplotlib
import numpy as np

from quill.lab.drawing.maps import largest_of_squares
from quill.lab.drawing.style import label_tokens, new_figure, style, visible


def test_the_style_changes_no_setting_outside_its_block() -> None:
    before = dict(matplotlib.rcParams)
    with style():
        assert matplotlib.rcParams["legend.frameon"] is False
    assert dict(matplotlib.rcParams) == before


def test_blanks_and_control_characters_are_visible() -> None:
    assert [visible(text) for text in ("a", " ", "\n", "\t", "\x00", "", "é")] == ["a", "␣", "⏎", "⇥", "�", "∅", "é"]


def test_many_tokens_are_labelled_by_position() -> None:
    with style():
        _, axes = new_figure()
        label_tokens(axes, ["a", " "])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "␣"]
        _, axes = new_figure()
        label_tokens(axes, ["a"] * 65)
        assert "a" not in [label.get_text() for label in axes.get_xticklabels()]


def test_a_pixel_of_a_large_map_shows_the_largest_of_its_cells() -> None:
    map_TS = np.zeros((7, 7))
    map_TS[5, 2], map_TS[6, 6] = 0.5, 1.0
    expected = np.zeros((4, 4))
    expected[2, 1], expected[3, 3] = 0.5, 1.0
    np.testing.assert_array_equal(largest_of_squares(map_TS, 2), expected)
    np.testing.assert_array_equal(largest_of_squares(map_TS, 1), map_TS)
