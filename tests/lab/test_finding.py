"""What every instrument returns: JSON, a picture and a page."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from quill.lab import finding
from quill.lab.drawing.style import new_figure
from quill.lab.finding import Finding, plain


@dataclass(frozen=True)
class Small(Finding):
    values: np.ndarray
    title = 'A <title> & "more"'
    explanation = "What <it> is."

    def numbers(self):
        return {"values": self.values, "text": "</pre><script>"}

    def figure(self):
        return new_figure()[0]


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    found = json.loads(Small(np.array([1.5, np.nan, np.inf])).to_json())
    assert found["values"] == [1.5, None, None]
    assert plain({"a": np.float32(2), "b": (np.int64(3), [float("nan")])}) == {"a": 2.0, "b": [3, [None]]}


def test_text_in_a_page_is_escaped() -> None:
    page = Small(np.zeros(2)).to_html()
    assert "<script" not in page and "A &lt;title&gt; &amp; &quot;more&quot;" in page and "What &lt;it&gt; is." in page


def test_a_page_holds_its_numbers_unless_they_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "<summary>Numbers" in Small(np.zeros(2)).to_html()
    monkeypatch.setattr(finding, "MOST_NUMBERS", 10)
    assert "<summary>Numbers" not in Small(np.zeros(2)).to_html()


def test_a_notebook_shows_the_picture() -> None:
    bundle = Small(np.zeros(2))._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
