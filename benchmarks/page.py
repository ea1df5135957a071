"""The page of `quill serve` in Chromium: seconds until it is painted, can be used, and shows the first character.

    python benchmarks/page.py --run=out [--runs=10] [--json=page.json]

Each run opens the page in a new browser context, so nothing comes from the browser's cache. `first paint` is the
browser's own first-contentful-paint entry; `ready` is when the Write button can be pressed; `first character` and
`alternatives` are from the press of a button to what it shows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import measure
from measure import Figures
from playwright.sync_api import Browser, expect, sync_playwright

NAMES = {
    "first paint": "first_paint_seconds",
    "ready": "ready_seconds",
    "first character": "first_character_seconds",
    "alternatives": "alternatives_seconds",
}
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def main() -> int:
    """Measure the page, print a table and write JSON."""
    parser = measure.argument_parser("The page of quill serve in Chromium.", runs=10)
    parser.add_argument("--run", metavar="PATH", required=True, help="a run directory")
    arguments = parser.parse_args()
    words = [sys.executable, "-m", "quill", "serve", arguments.run, "--port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        open_page(browser, address)  # loads the model
        results = measure.alternate({"page": lambda: open_page(browser, address)}, arguments.runs, quiet=True)
        browser.close()
        server.terminate()
    print(measure.describe_hardware())
    rows = [[name, str(results["page"][figure])] for name, figure in NAMES.items()]
    measure.print_table("The page", ["until", "seconds: median (range)"], rows)
    if arguments.json:
        measure.write_json(arguments.json, "page", results)
    return 0


def open_page(browser: Browser, address: str) -> Figures:
    """Open the page, write a text, and open the alternatives of a character."""
    with browser.new_context() as context:
        page = context.new_page()
        started = time.perf_counter()
        page.goto(address, wait_until="commit")
        button = page.get_by_role("button", name="Write", exact=True)
        expect(button).to_be_enabled()
        ready = time.perf_counter() - started
        first_paint = page.evaluate(FIRST_PAINT)
        generated = page.locator(".cell:not(.prompt)").first
        started = time.perf_counter()
        button.click()
        expect(generated).to_be_attached(timeout=120_000)
        first_character = time.perf_counter() - started
        expect(page.get_by_text("The text is complete.")).to_be_attached(timeout=120_000)
        started = time.perf_counter()
        generated.click()
        expect(page.get_by_role("table")).to_be_visible(timeout=120_000)
        alternatives = time.perf_counter() - started
    return {
        "first_paint_seconds": first_paint,
        "ready_seconds": ready,
        "first_character_seconds": first_character,
        "alternatives_seconds": alternatives,
    }


if __name__ == "__main__":
    sys.exit(main())
