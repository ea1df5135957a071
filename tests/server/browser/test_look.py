"""The Look tab in a browser: heads, tokens, lenses, probabilities and switches, by keyboard alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, expect
from write_tab import choose, slide, text_of, write

import quill

from .conftest import EVIL, OpenPage

pytestmark = pytest.mark.long

TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))
SETTINGS: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "batch_size": 8, "max_iters": 60, "eval_interval": 20,
    "eval_iters": 2, "log_interval": 5, "sample_tokens": 12, "warmup_iters": 2, "device": "cpu", "progress": False,
    "learning_rate": 0.02, "film": True, "architecture": "modern",
}  # fmt: skip


@pytest.fixture(scope="module")
def lab_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `quill serve` for a tiny run with a film and n-gram tables."""
    folder = tmp_path_factory.mktemp("look")
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    start: Any = quill.run
    start(dataset=str(folder / "my.txt"), data_dir=str(folder / "data"), out_dir=str(folder / "out"), **SETTINGS)
    with served(folder / "out", folder) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().replace("localhost", "127.0.0.1")
        process.terminate()
        process.wait()


def served(run: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quill", "serve", str(run), "--port=0", "--device=cpu", "--engine=torch"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8")


@pytest.fixture
def look(page: Page, lab_address: str) -> Page:
    """The Look tab, with a text that is looked at."""
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page.goto(f"{lab_address}#look")
    expect(page.get_by_label("Text to look at")).not_to_have_value("")  # the example
    page.get_by_label("Text to look at").fill("KING 3: now is")
    expect(page.get_by_role("group", name="Predictions of all layers")).to_contain_text("block 1")
    return page


def model_of(request: Request) -> str:
    """Return the id of the model that a request names."""
    body = request.post_data_json
    assert isinstance(body, dict)
    return body["model"]


def picture(page: Page) -> str:
    """Return the picture of the large head."""
    return page.locator(".map canvas").evaluate("canvas => canvas.toDataURL()")


def test_arrow_keys_choose_a_head_which_is_drawn_large_with_a_table_of_its_numbers(look: Page) -> None:
    first = picture(look)
    look.get_by_role("radio", name="Head 0.0").focus()
    look.keyboard.press("ArrowRight")
    expect(look.get_by_role("heading", name="Head 0.1", exact=True)).to_be_visible()
    assert picture(look) != first
    cells = look.locator(".one-head tbody tr").first.locator("td")
    assert re.fullmatch(r"\d+\.\d\d %", cells.nth(1).inner_text())
    assert "head=0.1" in look.url


def test_arrow_keys_move_the_token_that_all_views_look_at(look: Page) -> None:
    slider = look.get_by_role("slider", name="Token")
    slider.focus()
    look.keyboard.press("Home")
    for _ in range(5):
        look.keyboard.press("ArrowRight")
    expect(look.locator(".one-head caption")).to_contain_text("Token 5")
    expect(look.locator(".lens .numbers caption")).to_contain_text("token 5")
    assert slider.get_attribute("aria-valuetext") == "5: 3"
    rows = look.locator(".one-head tbody tr")
    expect(rows).to_have_count(6)  # the token itself and the five before it


def test_hovering_over_a_token_moves_the_arcs_to_it(look: Page) -> None:
    section = look.get_by_label("Where the chosen token looks")
    tokens = section.locator(".tokens .token")
    for position in (9, 4):
        tokens.nth(position).hover()
        expect(tokens.nth(position)).to_have_class("token chosen")
        expect(look.get_by_role("slider", name="Token")).to_have_attribute(
            "aria-valuetext", re.compile(f"^{position}:")
        )
    start = tokens.nth(4).evaluate("(e) => e.offsetLeft + e.offsetWidth / 2 - e.parentElement.offsetLeft")
    lines = section.locator("path").evaluate_all("(paths) => paths.map((path) => path.getAttribute('d'))")
    assert 1 <= len(lines) <= 4, "an arc to each earlier token that it looks at"
    assert all(float(line.split()[1]) == pytest.approx(start, abs=1) for line in lines)


def test_probability_bars_follow_the_temperature(look: Page) -> None:
    temperature = look.get_by_role("slider", name="Temperature")
    likeliest = look.locator(".next tbody tr").first.locator("td").nth(1)
    expect(likeliest).to_contain_text("%")
    temperature.focus()
    look.keyboard.press("Home")
    expect(likeliest).to_have_text("100.0 %")
    look.keyboard.press("End")
    expect(likeliest).not_to_have_text("100.0 %")


def test_attribution_names_the_parts_that_made_a_token_likely(look: Page) -> None:
    section = look.get_by_label("What made a token likely")
    expect(section.get_by_role("row").filter(has_text="embedding")).to_have_count(1)
    section.get_by_label("Token (else the likeliest)").fill("K")
    expect(section).to_contain_text("What made “K” likelier")


def test_a_switch_changes_every_view_and_shows_what_it_costs_with_its_interval(look: Page) -> None:
    section = look.get_by_label("Switches", exact=True)
    expect(section.get_by_role("status")).to_have_text("All parts are on.")
    before = look.locator(".next tbody").inner_text()
    section.get_by_role("checkbox", name="Block 0").focus()
    look.keyboard.press("Space")
    expect(section.get_by_role("status")).to_contain_text("95 % interval")
    expect(section.get_by_role("status")).to_contain_text("Without block:0 the loss is")
    expect(look.locator(".next tbody")).not_to_have_text(before, use_inner_text=True)
    assert "off=block" in look.url
    section.get_by_role("button", name="All on").click()
    expect(look.locator(".next tbody")).to_have_text(before, use_inner_text=True)


def test_a_switch_acts_while_the_model_writes(look: Page) -> None:
    section = look.get_by_label("Switches", exact=True)
    written = section.get_by_label("Written text")
    section.get_by_role("button", name="Write on").click()
    expect(written).to_have_text(re.compile(".{20,}", re.DOTALL), use_inner_text=True)
    with look.expect_request(lambda request: request.url.endswith("/v1/completions")) as request:
        section.get_by_role("checkbox", name="N-gram tables").click()
    body = request.value.post_data_json
    assert body is not None and body["model"] == "out~ngrams"
    assert len(body["prompt"]) >= len("KING 3: now is") + 20 and body["prompt"].startswith("KING 3: now is")
    length = len(body["prompt"]) - len("KING 3: now is")
    expect(written).to_have_text(re.compile(f".{{{length + 20},}}", re.DOTALL), use_inner_text=True)
    section.get_by_role("button", name="Stop").click()


def test_roles_and_costs_are_measured_by_a_button(look: Page) -> None:
    look.get_by_role("button", name="Measure what each head does").click()
    expect(
        look.get_by_role("radio", name=re.compile(r"Head 1\.1: .+; without it the loss changes by"))
    ).to_be_attached()


def test_the_tuned_lens_is_trained_by_a_button_and_then_shown(look: Page) -> None:
    section = look.get_by_label("What each layer would predict", exact=True)
    before = section.locator(".lens-grid").inner_text()
    section.get_by_label("tuned lens").check()
    section.get_by_role("button", name="Train the tuned lens").click()
    expect(section.locator(".lens-grid")).to_be_visible()
    expect(section).to_contain_text("affine")
    assert section.locator(".lens-grid").inner_text() != before
    look.reload()
    section.get_by_label("tuned lens").check()
    expect(section.locator(".lens-grid")).to_be_visible()
    expect(section.get_by_role("button", name="Train the tuned lens")).to_have_count(0)


def test_a_measurement_that_fails_says_why(page: Page, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    start: Any = quill.run
    short = {**SETTINGS, "max_iters": 4, "film": False}
    start(dataset=str(tmp_path / "my.txt"), data_dir=str(tmp_path / "data"), out_dir=str(tmp_path / "out"), **short)
    (tmp_path / "my.txt").unlink()
    shutil.rmtree(tmp_path / "data")
    with served(tmp_path / "out", tmp_path) as process:
        assert process.stdout is not None
        page.goto(f"{process.stdout.readline().strip()}#look?text=KING")
        page.get_by_role("button", name="Measure what each head does").click()
        expect(page.get_by_role("alert")).to_contain_text("my.txt")
        expect(page.get_by_role("button", name="Measure what each head does")).to_be_visible()
        process.terminate()
        process.wait()


def test_in_forced_colours_maps_and_bars_keep_their_colours(new_page: OpenPage, lab_address: str) -> None:
    page = new_page(forced_colors="active")
    page.goto(f"{lab_address}#look?text=KING 3: now is")
    for part in (".heads canvas", ".map canvas", ".next .bar", ".attribution .bar"):
        expect(page.locator(part).first).to_be_attached()
        assert page.locator(part).first.evaluate("(e) => getComputedStyle(e).forcedColorAdjust") == "none"
    back, card = page.locator(".next .bar").first.evaluate(
        "(bar) => [bar, bar.closest('.card')].map((each) => getComputedStyle(each).backgroundColor)"
    )
    assert back != card
    assert Axe().run(page).violations_count == 0


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_axe_finds_nothing_and_a_narrow_screen_needs_no_sideways_scrolling(look: Page, colors: Any) -> None:
    look.emulate_media(color_scheme=colors)
    found = Axe().run(look)
    assert found.violations_count == 0, found.generate_report()
    look.set_viewport_size({"width": 320, "height": 700})
    assert look.evaluate("document.documentElement.scrollWidth") <= 320


def test_markup_in_a_text_stays_text(page: Page, address: str) -> None:
    page.goto(f"{address}/#look?" + urlencode({"model": EVIL, "text": f"a {EVIL}<script>alert(2)</script>"}))
    expect(page.get_by_role("group", name="Predictions of all layers")).to_contain_text("block 0")
    assert page.locator(".look img, .look script").count() == 0
    assert page.locator(".lens-grid thead").inner_text().split()[-1] == ">"


def test_the_write_tab_writes_without_the_parts_that_are_off_and_its_link_does_too(
    look: Page, new_page: OpenPage
) -> None:
    look.get_by_role("checkbox", name="Block 0").uncheck()
    look.get_by_role("link", name="Write").click()
    expect(look.get_by_text("Switched off in the Look tab: block:0.")).to_be_visible()
    slide(look, "Length", 30)
    with look.expect_request(lambda request: request.url.endswith("/v1/completions")) as request:
        text = write(look, "KING ")
    assert model_of(request.value) == "out~block:0"
    with look.expect_request(lambda request: request.url.endswith("/api/alternatives")) as request:
        choose(look, 10)
    assert model_of(request.value) == "out~block:0"
    other = new_page()
    other.goto(look.url)
    assert text_of(other) == text
    expect(other.get_by_role("alert")).to_have_count(0)
    other.get_by_role("button", name="All on").click()
    with other.expect_request(lambda request: request.url.endswith("/v1/completions")) as request:
        write(other, "KING ")
    assert model_of(request.value) == "out"
    other.get_by_role("link", name="Look").click()
    expect(other.get_by_text("All parts are on.")).to_be_visible()
