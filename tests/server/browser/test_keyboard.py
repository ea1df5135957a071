"""Each tab by keyboard alone: Tab reaches every control, and shows where it is."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.long

# What a person can use on the page. Of radio buttons with one name, Tab stops at the chosen one.
CONTROLS = """() => {
  const found = document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]');
  const shown = [...found].filter((e) => !e.disabled && e.getClientRects().length && e.checkVisibility());
  const usable = shown.filter((e) => e.type !== 'radio' || e.checked);
  usable.forEach((e, index) => { e.dataset.control = index; });
  return usable.map((e) => e.getAttribute('aria-label') || e.innerText || e.id || e.type);
}"""
FOCUSED = """() => {
  const e = document.activeElement;
  const shown = e.type === 'radio' ? e.closest('label') : e;
  const style = getComputedStyle(shown);
  return [e.dataset.control ?? null, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0];
}"""
READY = {
    "write": "Length",
    "look": "Switches of all parts",
    "watch": "validation",
    "learn": "Run the experiment",
}


@pytest.mark.parametrize("tab", READY)
@pytest.mark.parametrize("width", [320, 1200])
def test_tab_reaches_every_control_and_shows_where_it_is(page: Page, address: str, tab: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{address}/#{tab}?model=letters&text=KING")
    ready = READY[tab]
    expect(page.get_by_label(ready).or_(page.get_by_text(ready)).first).to_be_visible()
    page.wait_for_load_state("networkidle")
    names = page.evaluate(CONTROLS)
    assert len(names) > 5
    reached: set[int] = set()
    hidden: list[str] = []
    for _ in range(3 * len(names)):
        page.keyboard.press("Tab")
        control, visible = page.evaluate(FOCUSED)
        if control is not None:
            reached.add(int(control))
            if not visible:
                hidden.append(names[int(control)])
    assert [name for index, name in enumerate(names) if index not in reached] == []
    assert hidden == []
