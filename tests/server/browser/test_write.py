"""The Write tab in a browser, on tiny models that a server process serves."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, Route, expect
from write_tab import cells, choose, slide, text_of, write

pytestmark = pytest.mark.long

OpenPage = Callable[..., Page]
EVIL = "<img src=x onerror=alert(1)>"


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(address + path, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def settings_in(page: Page) -> dict[str, str]:
    """Return the parameters in the address of a page."""
    return dict(parse_qsl(urlsplit(page.url).fragment.partition("?")[2], keep_blank_values=True))


def alternative(page: Page, row: int) -> list[str]:
    """Return the cells of a row of alternatives: the character, the model's probability, and that after the rules."""
    cells = page.get_by_role("table").get_by_role("row").nth(row + 1).locator("th, td")
    return [text.strip() for text in cells.all_inner_texts()]


def test_the_text_is_the_one_that_the_api_writes_with_the_same_settings(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Temperature", 1.2)
    slide(page, "Length", 100)
    text = write(page, "KING ")
    asked = settings_in(page)
    body = {
        "model": "letters", "prompt": "KING ", "max_tokens": 100, "temperature": 1.2, "seed": int(asked["seed"]),
    }  # fmt: skip
    assert text == "KING " + post(address, "/v1/completions", body)["choices"][0]["text"]


def test_each_character_shows_its_probability_before_and_after_the_rules(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Top-k", 1)
    write(page, "KING")
    choose(page, 4)
    assert alternative(page, 0)[2] == "100 %"  # top-k 1 keeps the likeliest one
    assert alternative(page, 1)[2].startswith("–")
    before = float(alternative(page, 0)[1].removesuffix(" %"))
    assert 0 < before < 100
    slide(page, "Top-k", 0)  # the sliders act on the open panel
    slide(page, "Temperature", 1)
    expect(page.get_by_role("row").nth(1).locator("td").nth(1)).to_have_text(alternative(page, 0)[1])


def test_choosing_an_alternative_branches_there_and_undo_returns_to_the_text_before(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Length", 60)
    before = write(page, "KING ")
    choose(page, 20)
    button = page.get_by_role("button", name="Continue with").nth(5)
    chosen = (button.get_attribute("aria-label") or "").removeprefix("Continue with ")
    button.click()
    expect(cells(page).nth(79)).to_be_attached()  # 20 kept, one chosen, 60 written
    after = text_of(page)
    assert after[:20] == before[:20] and len(after) == 81
    assert after[20] == {"space": " ", "line break": "\n"}.get(chosen, chosen)
    page.get_by_role("button", name="Undo").click()
    expect(cells(page)).to_have_count(len(before))
    assert text_of(page) == before


def test_a_link_writes_the_same_text_again(page: Page, new_page: OpenPage, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Temperature", 1.5)
    slide(page, "Min-p", 0.05)
    slide(page, "Length", 80)
    write(page, "1: \nKING ")
    choose(page, 30)
    page.get_by_role("button", name="Continue with").nth(3).click()
    expect(cells(page).nth(110)).to_be_attached()
    text = text_of(page)
    other = new_page()
    other.goto(page.url)
    assert text_of(other) == text
    assert settings_in(other) == settings_in(page)
    expect(other.get_by_role("alert")).to_have_count(0)


def test_a_link_of_other_weights_says_that_its_text_is_another_one(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    write(page, "KING ")
    weights = settings_in(page)["weights"]
    page.goto("about:blank")
    page.goto(f"{address}/#write?model=letters&prompt=KING&seed=1&weights={'0' * 16}")
    text_of(page)
    expect(page.get_by_role("alert")).to_contain_text("made with other weights")
    expect(page.get_by_role("alert")).to_contain_text(weights)


def test_a_prompt_that_the_vocabulary_lacks_is_an_error_that_names_the_character(
    page: Page, address: str, problems: list[str]
) -> None:
    page.goto(f"{address}/#write?model=letters")
    page.get_by_label("Prompt").fill("Ωmega")
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Ω")
    assert [text for text in problems if "400" not in text] == []  # the browser reports each 4xx
    problems.clear()
    assert write(page, "KING ").startswith("KING ")


def test_the_text_goes_on_from_its_end(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Length", 30)
    before = write(page, "KING ")
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(cells(page)).to_have_count(len(before) + 30)
    assert text_of(page).startswith(before)


def test_a_character_of_several_bytes_is_one_character(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model={quote(EVIL)}")
    slide(page, "Length", 20)
    write(page, "naïve 🪶:")
    assert cells(page).all_text_contents()[:8] == [*"naïve ", "🪶", ":"]
    choose(page, 7)
    expect(page.get_by_text("Instead of :")).to_be_visible()


def test_stop_ends_a_text_which_can_then_be_continued(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    slide(page, "Length", 2000)
    page.get_by_label("Prompt").fill("KING ")
    page.get_by_role("button", name="Write", exact=True).click()
    expect(cells(page).nth(20)).to_be_attached()
    page.get_by_role("button", name="Stop").click()
    stopped = text_of(page)
    assert 20 < len(stopped) < 2000
    slide(page, "Length", 10)
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(cells(page)).to_have_count(len(stopped) + 10)
    assert text_of(page).startswith(stopped)


def test_stop_also_ends_a_request_whose_prompt_is_not_read_yet(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    held: list[Route] = []
    completions: list[str] = []
    page.on("request", lambda request: completions.append(request.url) if "completions" in request.url else None)
    page.route("**/tokenize", lambda route: held.append(route))
    page.get_by_label("Prompt").fill("KING ")
    page.get_by_role("button", name="Write", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Write", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert len(held) == 1 and completions == []
    page.unroute("**/tokenize")
    assert write(page, "KING ").startswith("KING ") and len(completions) == 1


def test_a_link_can_name_tokens_that_are_no_text(page: Page, address: str) -> None:
    half = "🪶".encode()[:2]  # the byte tokenizer's ids are the bytes
    page.goto(f"{address}/#write?model={quote(EVIL)}&tokens={half[0]}.{half[1]}&max_tokens=5&seed=3")
    text = text_of(page)
    assert text.startswith("\ufffd\ufffd")
    body = {"model": EVIL, "prompt": list(half), "max_tokens": 5, "seed": 3, "return_token_ids": True}
    written = post(address, "/v1/completions", body)["choices"][0]["token_ids"]
    assert settings_in(page)["tokens"] == f"{half[0]}.{half[1]}"
    choose(page, 2)
    shown = page.locator(".alternatives tr.chosen button").inner_text()
    assert shown == chr(written[0]) or written[0] in (9, 10, 13, 32) or written[0] > 127


@pytest.mark.parametrize("prompt", ["<script>alert(1)</script>", EVIL, "</textarea><svg onload=alert(1)>"])
def test_markup_in_a_prompt_or_the_name_of_a_run_stays_text(page: Page, address: str, prompt: str) -> None:
    page.goto(f"{address}/#write?model={quote(EVIL)}")
    assert write(page, prompt).startswith(prompt)
    choose(page, 1)
    expect(page.get_by_label("Model")).to_have_value(EVIL)
    assert page.locator("img, svg, script:not([src])").count() == 0
