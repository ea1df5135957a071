"""Make the pictures of the page in docs/images/serving, with Chromium.

    python tools/screenshots.py [RUN] [--only NAME …]

RUN is the folder of a trained run; by default the newest run in this folder. Each picture is a function in SHOTS:
open something, and the visible part of the page is the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images" / "serving"
COLOURS = 128  # of a palette, which makes a PNG a quarter of its size


class Shot(NamedTuple):
    """One picture."""

    prepare: Callable[[Page, str], None]
    """opens the page at an address, and what the picture shows"""
    size: tuple[int, int] = (1200, 760)
    scheme: Literal["light", "dark"] = "light"


def write(page: Page, address: str) -> None:
    """A text with the alternatives of one of its characters."""
    settings = "temperature=0.8&max_tokens=420&seed=5"
    page.goto(f"{address}#write?prompt=The%20&{settings}")
    expect(page.get_by_text("The text is complete.")).to_be_attached(timeout=120_000)
    unsure = page.locator(".cell.s4:not(.break)")
    unsure.nth(min(3, unsure.count() - 1)).click()
    expect(page.get_by_role("table")).to_be_visible()


def watch(page: Page, address: str) -> None:
    """A run with a film, at a moment in the middle of its training."""
    page.goto(f"{address}#watch")
    slider = page.get_by_role("slider", name="Training time")
    expect(slider).to_be_visible(timeout=120_000)
    expect(page.get_by_role("listitem").filter(has_text="pairs counted")).to_be_visible(timeout=120_000)
    slider.fill(str(int(slider.get_attribute("max") or 0) // 2))


def look(page: Page, address: str) -> None:
    """All heads with their roles and costs, one of them large, and what each layer would predict."""
    text = "ROMEO:\nWhat light is this? What light is this I see?"
    page.goto(f"{address}#look?{urlencode({'text': text})}")
    grid = page.get_by_role("group", name="Predictions of all layers")
    expect(grid).to_be_visible(timeout=120_000)
    measure = page.get_by_role("button", name="Measure what each head does")
    roles = page.locator(".head .role")
    expect(measure.or_(roles.first)).to_be_attached(timeout=120_000)
    if measure.count():
        measure.click()
    expect(roles.first).to_be_attached(timeout=600_000)
    costs = page.locator(".head .bar").evaluate_all("(bars) => bars.map((bar) => parseFloat(bar.style.width))")
    page.locator(".head").nth(costs.index(max(costs))).click()
    token = text.rindex("light") + 3
    page.get_by_role("slider", name="Token").fill(str(token))
    expect(page.locator(".one-head caption")).to_contain_text(f"Token {token}")
    page.mouse.move(0, 0)


def learn(page: Page, address: str) -> None:
    """A lesson with the result of an experiment that was run here."""
    page.goto(f"{address}#learn?lesson=1")
    run = page.get_by_role("button", name="Run the experiment").first
    expect(run.or_(page.get_by_role("img", name="Picture of the result").first).first).to_be_visible(timeout=120_000)
    if not page.get_by_role("img", name="Picture of the result").count():
        run.click()
    expect(page.get_by_role("img", name="Picture of the result").first).to_be_visible(timeout=1_200_000)


SHOTS = {
    "write": Shot(write),
    "write-dark": Shot(write, scheme="dark"),
    "write-narrow": Shot(write, size=(360, 720)),
    "watch": Shot(watch, size=(1200, 1360)),
    "look": Shot(look, size=(1200, 1500)),
    "look-dark": Shot(look, size=(1200, 1000), scheme="dark"),
    "learn": Shot(learn, size=(1200, 1100)),
}


def main() -> None:
    """Serve the run, and make each picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default=".")
    parser.add_argument("--only", nargs="*", default=list(SHOTS), choices=list(SHOTS), metavar="NAME")
    arguments = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "quill", "serve", arguments.run, "--port=0"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        stack.callback(server.terminate)  # also after an error
        playwright = stack.enter_context(sync_playwright())
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in arguments.only:
            take(chromium.new_page, SHOTS[name], address, IMAGES / f"{name}.png")
        chromium.close()


def take(new_page: Callable[..., Page], shot: Shot, address: str, file: Path) -> None:
    """Make one picture, with a palette of few colours."""
    width, height = shot.size
    page = new_page(
        viewport={"width": width, "height": height}, color_scheme=shot.scheme, device_scale_factor=1.5,
        reduced_motion="reduce",
    )  # fmt: skip
    shot.prepare(page, address)
    page.wait_for_load_state("networkidle")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS).save(file, optimize=True)
    page.close()
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
