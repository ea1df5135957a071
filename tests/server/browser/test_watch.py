"""The Watch tab in a browser: curves, the film with its slider, two runs side by side, and a run that still trains."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

import quill
from quill.checkpoints.lock import lock_run
from quill.lab.film.film import Film, load_film

pytestmark = pytest.mark.long

OpenPage = Callable[..., Page]
EVIL = "<img src=x onerror=alert(1)>"
TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(60))
SETTINGS: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "batch_size": 8, "max_iters": 60, "eval_interval": 20,
    "eval_iters": 2, "log_interval": 5, "sample_tokens": 12, "warmup_iters": 2, "device": "cpu", "progress": False,
    "learning_rate": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: two with films, of 60 and of 40 steps; one without a film, whose name is markup."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    start: Any = quill.run
    runs = folder / "runs"
    for name, others in {
        EVIL: {}, "short": {"film": True, "n_head": 1, "max_iters": 40}, "whole": {"film": True},
    }.items():  # fmt: skip
        words = {"dataset": str(folder / "my.txt"), "data_dir": str(folder / "data"), "out_dir": str(runs / name)}
        start(**words, **{**SETTINGS, **others})
    shutil.copytree(runs / "whole", runs / "going")
    return runs


@pytest.fixture(scope="module")
def watch_address(filmed: Path) -> Iterator[str]:
    """The address of `quill serve` for these runs."""
    command = [sys.executable, "-m", "quill", "serve", str(filmed), "--port=0", "--device=cpu", "--engine=torch"]
    with subprocess.Popen(command, cwd=filmed.parent, stdout=subprocess.PIPE, encoding="utf-8") as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip().rstrip("/")
        server.terminate()


@pytest.fixture
def film(filmed: Path) -> Film:
    """The film of the run `whole`."""
    return load_film(filmed / "whole")


@pytest.fixture
def watch(page: Page, watch_address: str) -> Page:
    """The Watch tab with the run `whole`."""
    return opened(page, watch_address)


def opened(page: Page, address: str, parameters: str = "model=whole") -> Page:
    page.goto(f"{address}/#watch?{parameters}")
    expect(page.get_by_role("group", name="Sample").first).to_be_visible()
    return page


def slider(page: Page) -> Locator:
    return page.get_by_role("slider", name="Training time")


def shown(page: Page) -> dict[str, str]:
    """Return what the tab shows at its moment: a text for each part."""
    return {
        "loss": page.get_by_role("listitem").filter(has_text="the film's text").inner_text(),
        "sample": page.locator(".moment .sample").inner_text(),
        "attention": page.locator(".heads canvas").first.evaluate("canvas => canvas.toDataURL()"),
        "lens": page.get_by_role("group", name="Predictions of all layers").inner_text(),
        "roles": page.get_by_role("group", name="Attention and roles of all heads").inner_text(),
        "marked": page.locator(".plot canvas").first.evaluate("canvas => canvas.toDataURL()"),
    }


def expected_at(film: Film, index: int) -> dict[str, str]:
    """Return the parts that a film's own numbers determine."""
    roles, _ = film.roles[index]
    heads = [f"{layer}.{head} {role}" for layer, row in enumerate(roles) for head, role in enumerate(row)]
    return {
        "loss": f"the film's text: {film.probe_losses[index]:.4f}",
        "sample": film.samples[index],
        "roles": "\n".join(heads).replace("none", "no role"),
    }


def test_a_run_shows_its_loss_beside_what_knowing_and_counting_alone_reach(watch: Page) -> None:
    expect(watch.get_by_text("Ended: step 60 of 60, validation loss")).to_be_visible()
    for name in ("ln V: all tokens alike", "single tokens counted", "pairs counted", "training", "validation"):
        expect(watch.get_by_role("listitem").filter(has_text=f"{name}: ")).to_contain_text(".")
    for name in ("Loss, nats per token", "Learning rate", "Tokens per second"):
        expect(watch.get_by_role("img", name=f"{name} over the steps")).to_be_visible()
    watch.get_by_text("Newest sample, step 60").click()
    expect(watch.locator("details .sample")).to_be_visible()


def test_one_slider_moves_loss_sample_attention_lens_and_roles_to_the_same_moment(watch: Page, film: Film) -> None:
    last, before = len(film.steps) - 1, shown(watch)
    assert before | expected_at(film, last) == before
    slider(watch).fill("0")
    expect(watch.get_by_role("heading", name="Step 0", exact=True)).to_be_visible()
    first = shown(watch)
    assert first | expected_at(film, 0) == first
    assert all(first[part] != before[part] for part in ("loss", "sample", "attention", "lens", "marked"))


def test_arrow_keys_stop_at_the_moments_of_the_film_and_at_no_others(watch: Page, film: Film) -> None:
    slider(watch).press("Home")
    for step in film.steps:
        expect(watch.locator(".time output")).to_have_text(f"step {step}")
        expect(slider(watch)).to_have_attribute("aria-valuetext", f"step {step}")
        expect(watch.get_by_role("heading", name=f"Step {step}", exact=True)).to_be_visible()
        slider(watch).press("ArrowRight")
    expect(watch.locator(".time output")).to_have_text(f"step {film.steps[-1]}")


def test_play_begins_again_from_the_end_and_stops_there(watch: Page, film: Film) -> None:
    watch.get_by_role("button", name="Play").press("Enter")
    expect(watch.locator(".time output")).to_have_text(f"step {film.steps[1]}")
    watch.get_by_role("button", name="Pause").click()
    paused = slider(watch).input_value()
    assert paused != str(len(film.steps) - 1)
    watch.get_by_role("button", name="Play").click()
    expect(watch.locator(".time output")).to_have_text(f"step {film.steps[-1]}")
    expect(watch.get_by_role("button", name="Play")).to_be_visible()


def test_a_moment_is_in_the_address_and_an_address_between_two_moments_shows_the_earlier(
    watch: Page, watch_address: str, film: Film, new_page: OpenPage
) -> None:
    slider(watch).press("ArrowLeft")
    expect(watch).to_have_url(f"{watch_address}/#watch?model=whole&step={film.steps[-2]}")
    again = opened(new_page(), watch_address, f"model=whole&step={film.steps[-1] - 1}")
    expect(again.locator(".time output")).to_have_text(f"step {film.steps[-2]}")


def test_two_runs_side_by_side_stop_at_the_steps_that_both_films_have(watch: Page, film: Film, filmed: Path) -> None:
    common = [step for step in film.steps if step in load_film(filmed / "short").steps]
    assert 1 < len(common) < len(film.steps)
    watch.get_by_label("Beside it").select_option("short")
    for name in ("whole", "short"):
        expect(
            watch.get_by_role("region", name=f"Run {name}").get_by_role("group", name="Heads", exact=True)
        ).to_be_visible()
    slider(watch).press("Home")
    for step in common:
        expect(watch.get_by_role("heading", name=f"Step {step}", exact=True)).to_have_count(2)
        slider(watch).press("ArrowRight")
    expect(watch.locator(".time output")).to_have_text(f"step {common[-1]}")


def test_a_run_without_a_film_says_how_to_make_one_and_markup_in_its_name_is_text(
    page: Page, watch_address: str
) -> None:
    page.goto(f"{watch_address}/#watch")
    page.get_by_label("Model").select_option(EVIL)
    expect(page.get_by_text("With quill train --film a run keeps one")).to_be_visible()
    expect(slider(page)).to_have_count(0)
    page.get_by_label("Beside it").select_option("whole")
    expect(page.get_by_role("heading", name=EVIL)).to_be_visible()
    assert page.locator("main img").count() == 0


def test_a_run_that_still_trains_is_followed_until_it_ends(page: Page, watch_address: str, filmed: Path) -> None:
    run = filmed / "going"
    record, film = run / "metrics.jsonl", run / "film.safetensors"
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    half = next(i for i, line in enumerate(lines) if '"event": "step", "step": 30,' in line) + 1
    kept = film.read_bytes()
    film.unlink()
    record.write_text("".join(lines[:half]), encoding="utf-8")
    with lock_run(run):
        page.goto(f"{watch_address}/#watch?model=going")
        expect(page.get_by_text("Training: step 30 of 60")).to_contain_text(" left.")
        film.write_bytes(kept)
        expect(slider(page)).to_be_visible()
        with record.open("a", encoding="utf-8") as file:
            file.writelines(lines[half:])
        expect(page.get_by_text("Training: step 60 of 60")).to_be_visible()
    expect(page.get_by_text("Ended: step 60 of 60")).to_be_visible()


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    new_page: OpenPage, watch_address: str, colors: str, width: int
) -> None:
    page = new_page(color_scheme=colors, viewport={"width": width, "height": 800})
    opened(page, watch_address, "model=whole&beside=short")
    assert Axe().run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_in_forced_colours_maps_and_the_key_of_the_curves_keep_their_colours(
    new_page: OpenPage, watch_address: str
) -> None:
    page = opened(new_page(forced_colors="active"), watch_address)
    for part in (".heads canvas", ".swatch"):
        assert page.locator(part).first.evaluate("(e) => getComputedStyle(e).forcedColorAdjust") == "none"
