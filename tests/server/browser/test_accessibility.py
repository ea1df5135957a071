"""The page for everybody: without a fault that axe finds, by keyboard alone, on narrow screens, in forced colours."""

import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Route, expect
from write_tab import cells, choose, slide, text_of, write

pytestmark = pytest.mark.long

OpenPage = Callable[..., Page]
FOCUSED = "((e) => e.getAttribute('aria-label') || e.innerText || e.id)(document.activeElement)"


def text_box(page: Page) -> Locator:
    """Return the list box that is the text."""
    return page.get_by_role("listbox", name="The text")


def chosen(page: Page) -> Locator:
    """Return the chosen character of the text."""
    return text_box(page).get_by_role("option", selected=True)


def open_alternatives(page: Page, address: str) -> None:
    """Write a text on a page, and open the alternatives of a character."""
    page.goto(f"{address}/#write?model=letters")
    write(page, "KING 1: ")
    choose(page, 12)


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_axe_finds_nothing(new_page: OpenPage, address: str, colors: str, width: int) -> None:
    page = new_page(color_scheme=colors, viewport={"width": width, "height": 800})
    page.goto(f"{address}/#write?model=letters")
    expect(page.get_by_label("Prompt")).to_be_visible()
    assert Axe().run(page).response["violations"] == []
    open_alternatives(page, address)
    page.get_by_text("Penalties").click()
    assert Axe().run(page).response["violations"] == []


def test_everything_can_be_done_with_the_keyboard_alone(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    expect(page.get_by_label("Prompt")).to_be_visible()
    press = page.keyboard.press

    def tab_to(name: str) -> None:
        for _ in range(40):
            press("Tab")
            label = page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
            )
            if (label or page.evaluate("document.activeElement.id")).startswith(name):
                return
        raise AssertionError(f"Tab does not reach {name}")

    tab_to("prompt")
    press("ControlOrMeta+a")
    page.keyboard.type("KING ")
    tab_to("Write")
    press("Enter")
    before = text_of(page)
    tab_to("The text")
    press("Home")
    for _ in range(9):
        press("ArrowRight")
    expect(chosen(page)).to_have_attribute("id", "cell-9")
    expect(page.locator("table[aria-busy=false]")).to_be_visible()
    press("Enter")
    expect(page.locator(":focus")).to_have_accessible_name(re.compile("Continue with .*, the one in the text"))
    tab_to("Continue with")
    press("Enter")
    expect(cells(page)).to_have_count(len(before) + 5)
    assert text_of(page)[:9] == before[:9]
    press("Escape")  # closes the alternatives, and returns to the text
    expect(text_box(page)).to_be_focused()
    press("ControlOrMeta+z")
    expect(cells(page)).to_have_count(len(before))
    assert text_of(page) == before


def test_alternatives_of_the_character_before_cannot_be_chosen(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Length", 10)
    before = write(page, "KING ")
    choose(page, 5)
    held: list[Route] = []
    page.route("**/api/alternatives", lambda route: held.append(route))
    text_box(page).press("ArrowRight")
    table = page.get_by_role("table")
    expect(table).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("status").filter(has_text="Choose another")).to_have_text(re.compile("^… Choose"))
    page.keyboard.press("Enter")
    expect(text_box(page)).to_be_focused()
    table.get_by_role("button").first.click()
    held.pop().continue_()
    expect(table).to_have_attribute("aria-busy", "false")
    assert text_of(page) == before
    text_box(page).press("Enter")
    expect(page.locator(":focus")).to_have_accessible_name(re.compile("Continue with .*, the one in the text"))


def test_the_focus_stays_in_the_table_of_alternatives_when_others_come(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Length", 10)
    write(page, "KING ")
    choose(page, 5)
    held: list[Route] = []
    page.route("**/api/alternatives", lambda route: held.append(route))
    text_box(page).press("ArrowRight")
    second = page.get_by_role("table").get_by_role("button").nth(1)
    second.focus()
    response = held[0].fetch()
    answer = response.json()
    held[0].fulfill(response=response, json=answer | {"alternatives": answer["alternatives"][::-1]})
    expect(page.locator("table[aria-busy=false]")).to_be_visible()
    expect(second).to_be_focused()
    page.keyboard.press("Escape")
    expect(text_box(page)).to_be_focused()


def test_arrow_keys_move_between_lines_in_the_same_column(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Length", 1)
    write(page, "KING\nis\ndiscontent")
    text = text_box(page)
    text.press("Home")
    text.press("ArrowRight")
    for key, expected in [("ArrowDown", "s"), ("ArrowDown", "i"), ("ArrowUp", "s"), ("ArrowUp", "I"), ("ArrowUp", "I")]:
        text.press(key)
        expect(chosen(page)).to_have_text(expected)


@pytest.mark.parametrize("width", [320, 400, 768, 1200])
def test_no_width_makes_the_page_scroll_sideways(new_page: OpenPage, address: str, width: int) -> None:
    page = new_page(viewport={"width": width, "height": 700})
    open_alternatives(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_narrow_screen_the_chosen_character_is_not_behind_its_alternatives(
    new_page: OpenPage, address: str
) -> None:
    page = new_page(viewport={"width": 320, "height": 700})
    open_alternatives(page, address)
    text_box(page).press("End")
    panel = page.get_by_role("region", name="Alternatives").bounding_box()
    expect(page.get_by_role("table")).to_be_visible()
    cell = chosen(page).bounding_box()
    assert panel and cell and cell["y"] + cell["height"] <= panel["y"]


def test_reduced_motion_moves_nothing(new_page: OpenPage, address: str) -> None:
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s').length"
    calm, lively = new_page(reduced_motion="reduce"), new_page(reduced_motion="no-preference")
    for page in (calm, lively):
        open_alternatives(page, address)
    assert calm.evaluate(moving) == 0
    assert lively.evaluate(moving) > 0


def test_in_forced_colours_surprise_is_underlined_and_bars_stay_visible(new_page: OpenPage, address: str) -> None:
    page = new_page(forced_colors="active")
    open_alternatives(page, address)
    surprising = page.locator(".text .s7, .text .s6, .text .s5").first
    assert "underline" in surprising.evaluate("(cell) => getComputedStyle(cell).textDecorationLine")
    for bar in page.locator("tr.chosen .bar").all():
        back, card = bar.evaluate(
            "(bar) => [bar, bar.closest('.card')].map((each) => getComputedStyle(each).backgroundColor)"
        )
        assert back != card


def test_the_checks_of_these_tests_see_a_violation_a_foreign_request_and_a_dialog(
    page: Page, address: str, problems: list[str]
) -> None:
    page.goto(address)
    expect(page.get_by_label("Prompt")).to_be_visible()
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.evaluate("setTimeout(() => { throw new Error('thrown') })")
    page.evaluate("fetch('http://192.0.2.1/').catch(() => {})")
    page.evaluate("setTimeout(() => alert('a dialog'))")
    page.get_by_label("Prompt").fill("a")
    found = " ".join(problems)
    assert all(each in found for each in ("style-src", "thrown", "192.0.2.1", "a dialog"))
    problems.clear()
