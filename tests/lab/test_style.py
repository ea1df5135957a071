"""The style of pictures."""

from __future__ import annotations

import matplotlib

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
