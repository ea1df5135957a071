"""What tests in a browser do with the Write tab."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect


def cells(page: Page) -> Locator:
    """Return the characters of the text."""
    return page.get_by_role("listbox", name="The text").get_by_role("option")


def text_of(page: Page) -> str:
    """Return the text with its prompt, when it is complete."""
    expect(page.get_by_text("The text is complete.")).to_be_attached()
    return "".join(cells(page).all_text_contents())


def write(page: Page, prompt: str) -> str:
    """Write a text, and return it with its prompt."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Write", exact=True).click()
    return text_of(page)


def slide(page: Page, name: str, value: float) -> None:
    """Move a slider."""
    page.get_by_role("slider", name=name).fill(str(value))


def choose(page: Page, index: int) -> None:
    """Open the alternatives of a character."""
    cells(page).nth(index).click()
    expect(page.locator("table[aria-busy=false]")).to_be_visible()
