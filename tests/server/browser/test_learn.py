"""The Learn tab in a browser: the lessons, an experiment that is run, one that is cancelled, and stored results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

import quill

pytestmark = pytest.mark.long

OpenPage = Callable[..., Page]
TEXT = "".join(f"KING {n}: now is the winter of our discontent, the {n} of {n * n}.\n" for n in range(120))
SETTINGS: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "batch_size": 8, "max_iters": 20, "eval_interval": 20,
    "eval_iters": 2, "sample_tokens": 12, "warmup_iters": 2, "device": "cpu", "progress": False,
}  # fmt: skip
TITLES = [
    "Attention is communication", "Heads do different things", "The feed-forward network is worth its parameters",
    "LayerNorm stabilises depth", "Dropout generalises: when?", "Depth is refinement",
    "What limits a GPT on this machine", "The batch is parallel",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a trained run, in which no experiment was run yet."""
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    start: Any = quill.run
    words = {"dataset": str(tmp_path / "my.txt"), "data_dir": str(tmp_path / "data"), "out_dir": str(tmp_path / "out")}
    start(**words, **SETTINGS)
    return tmp_path


@pytest.fixture
def learn_address(folder: Path) -> Iterator[str]:
    """The address of `quill serve` for the run."""
    command = [sys.executable, "-m", "quill", "serve", "out", "--port=0", "--device=cpu", "--engine=torch"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8") as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip().rstrip("/")
        server.terminate()


def experiment(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=f"Experiment {name}")


def choose(page: Page, title: str) -> None:
    page.get_by_role("navigation", name="Lessons").get_by_role("button", name=title).press("Enter")


def test_every_lesson_has_a_page_that_offers_its_experiments(page: Page, learn_address: str) -> None:
    page.goto(f"{learn_address}/#learn")
    lessons = page.get_by_role("navigation", name="Lessons").get_by_role("button")
    expect(lessons).to_have_count(8)
    for number, title in enumerate(TITLES, 1):
        choose(page, title)
        expect(page.get_by_role("heading", name=f"{number}. {title}")).to_be_visible()
        expect(lessons.nth(number - 1)).to_contain_text("not run yet")
        expect(page.get_by_role("button", name="Run the experiment")).to_have_count(2 if number in (1, 6) else 1)
        expect(page).to_have_url(f"{learn_address}/#learn?model=out&lesson={number}")


def test_an_experiment_that_is_run_on_the_own_model_shows_its_result_here_and_after_a_reload(
    page: Page, learn_address: str, folder: Path
) -> None:
    page.goto(f"{learn_address}/#learn")
    card = experiment(page, "communication")
    card.get_by_role("checkbox", name="look into out").press("Space")
    card.get_by_role("button", name="Run the experiment").press("Enter")
    expect(card.get_by_role("progressbar", name="Run the experiment")).to_be_visible()
    expect(card.get_by_role("img", name="Picture of the result")).to_be_visible()
    found = json.loads((folder / "experiments" / "communication" / "result.json").read_text(encoding="utf-8"))
    assert found["settings"]["run"].endswith("/out")
    page.reload()
    expect(card.locator(".verdict")).to_have_text(f"Verdict: {found['verdict']}")
    expect(page.get_by_role("button", name=TITLES[0])).to_contain_text(found["verdict"])
    for part in ("claim", "measure", "control", "opposite"):
        expect(card).to_contain_text(found[part])
    rows = card.get_by_role("group", name="Effects").locator("tbody tr")
    expect(rows).to_have_count(len(found["effects"]))
    for row, effect in zip(rows.all(), found["effects"], strict=True):
        mean = effect["interval"]["mean"]
        sign = "−" if mean < 0 else "+"
        expect(row.get_by_role("rowheader")).to_have_text(effect["name"])
        expect(row.locator("td").first).to_have_text(f"{sign}{abs(mean):.3f} {effect['unit']}")
        expect(row.locator("td").last).to_have_text(effect["verdict"])
    width = "(image) => image.naturalWidth"
    assert card.get_by_role("img").evaluate(width) > 100
    assert Axe().run(page).response["violations"] == []


def test_an_experiment_can_be_cancelled_and_only_one_runs_at_a_time(
    page: Page, learn_address: str, folder: Path, new_page: OpenPage
) -> None:
    page.goto(f"{learn_address}/#learn?lesson=6")
    card = experiment(page, "induction")
    card.get_by_role("button", name="Run the experiment").click()
    expect(card.get_by_role("progressbar")).to_be_visible()
    again = new_page()
    again.goto(f"{learn_address}/#learn?lesson=6")
    expect(experiment(again, "induction").get_by_role("progressbar")).to_be_visible()
    card.get_by_role("button", name="Cancel").click()
    expect(card.get_by_role("button", name="Run the experiment")).to_be_visible()
    expect(experiment(again, "induction").get_by_role("button", name="Run the experiment")).to_be_visible()
    assert not (folder / "experiments" / "induction").exists()


def test_markup_in_a_stored_result_is_text(page: Page, learn_address: str, folder: Path) -> None:
    store(folder, "<script>alert(1)</script>")
    page.goto(f"{learn_address}/#learn?lesson=5")
    expect(page.get_by_text("Claim: <script>alert(1)</script>")).to_be_visible()
    assert page.locator("main script").count() == 0


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    new_page: OpenPage, learn_address: str, folder: Path, colors: str, width: int
) -> None:
    store(folder, "A claim")
    page = new_page(color_scheme=colors, viewport={"width": width, "height": 800})
    page.goto(f"{learn_address}/#learn?lesson=5")
    expect(page.get_by_role("img", name="Picture of the result")).to_be_visible()
    assert Axe().run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_number_that_is_not_finite_is_said_to_be_so(page: Page, learn_address: str, folder: Path) -> None:
    store(folder, "A claim", mean=None)
    page.goto(f"{learn_address}/#learn?lesson=5")
    expect(page.get_by_role("row", name="a difference").first).to_contain_text("not finite nats")


def store(folder: Path, claim: str, mean: float | None = 0.5) -> None:
    """Write a result of the experiment on dropout."""
    from PIL import Image

    where = folder / "experiments" / "dropout"
    where.mkdir(parents=True)
    interval = {"mean": mean, "low": 0.25, "high": 0.75, "level": 0.95}
    effect = {"name": "a difference", "interval": interval, "margin": 0.1, "unit": "nats", "verdict": "supported"}
    result = {
        "title": "A title", "claim": claim, "verdict": "supported", "effects": [effect], "controls": [effect],
        "measure": "A measure", "control": "A control", "opposite": "An opposite", "settings": {"seed": 1}, "seed": 1,
        "timings": {"seconds": 2.0},
    }  # fmt: skip
    (where / "result.json").write_text(json.dumps(result), encoding="utf-8")
    Image.new("RGB", (900, 300), "white").save(where / "result.png")
