"""The page of `quill serve` in Chromium: seconds until it is painted, can be used, and shows what was asked for.

    python benchmarks/page.py --run=out [--runs=10] [--json=page.json]

Each run opens the page in a new browser context, so nothing comes from the browser's cache. `first paint` is the
browser's own first-contentful-paint entry; `ready` is when the Write button can be pressed; `first character` and
`alternatives` are from the press of a button to what it shows. The rest is measured inside the browser: `attention` is
from Look's question about a text that fills the context to the drawn heads, `drawing` from the end of its answer, `all
views` to the last answer of the views of the same text; a `slider step` is from the input to the second frame after it,
in which all of the moment is painted (with a film).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time

import measure
from measure import Figures
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = {
    "first paint": "first_paint_seconds",
    "ready": "ready_seconds",
    "first character": "first_character_seconds",
    "alternatives": "alternatives_seconds",
    "attention of all heads": "attention_seconds",
    "drawing of all heads": "drawing_seconds",
    "all views of Look": "views_seconds",
    "slider step of a film": "slider_seconds",
}
LOOK = """() => {
  const answers = performance.getEntriesByType('resource');
  const [, asked] = answers.filter((entry) => entry.name.endsWith('/api/look/attention')); // the first: the example
  if (!asked) return null;
  const after = answers.filter((entry) => entry.startTime > asked.startTime);
  const paths = ['/api/look/row', '/api/look/lens', '/api/look/attribution'];
  const views = paths.map((path) => after.find((entry) => entry.name.endsWith(path)));
  if (!views.every(Boolean)) return null;
  const drawn = performance.getEntriesByName('heads drawn').at(-1).startTime;
  const last = Math.max(...views.map((entry) => entry.responseEnd));
  return [drawn - asked.startTime, drawn - asked.responseEnd, last - asked.startTime].map((time) => time / 1000);
}"""
SLIDE = """async (slider) => {
  const frame = () => new Promise(requestAnimationFrame);
  const taken = [];
  for (let step = Number(slider.max) - 1; step >= 0; step--) {
    await frame();
    const started = performance.now();
    slider.value = step;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    await frame();
    await frame();
    taken.push(performance.now() - started);
  }
  return taken.sort((a, b) => a - b)[Math.floor(taken.length / 2)] / 1000;
}"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def main() -> int:
    """Measure the page, print a table and write JSON."""
    parser = measure.argument_parser("The page of quill serve in Chromium.", runs=10)
    parser.add_argument("--run", metavar="PATH", required=True, help="a run directory")
    arguments = parser.parse_args()
    words = [sys.executable, "-m", "quill", "serve", arguments.run, "--port=0"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        stack.callback(server.terminate)  # also after an error: to leave the process waits for its end
        playwright = stack.enter_context(sync_playwright())
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        open_page(browser, address)  # loads the model
        results = measure.alternate({"page": lambda: open_page(browser, address)}, arguments.runs, quiet=True)
        browser.close()
    print(measure.describe_hardware())
    measured = results["page"]
    rows = [[name, str(measured[figure])] for name, figure in NAMES.items() if figure in measured]
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
        more = {**look(page, address), **slide(page, address)}
    return {
        **more,
        "first_paint_seconds": first_paint,
        "ready_seconds": ready,
        "first_character_seconds": first_character,
        "alternatives_seconds": alternatives,
    }


def look(page: Page, address: str) -> Figures:
    """Look at a text that fills the context."""
    page.goto(f"{address}#look")
    field = page.get_by_label("Text to look at")
    expect(field).not_to_have_value("", timeout=120_000)
    expect(page.locator(".lens-grid")).to_be_visible(timeout=120_000)
    with page.expect_response("**/api/look/attention"):
        field.fill(20 * field.input_value())
    while (seconds := page.evaluate(LOOK)) is None:
        page.wait_for_timeout(50)
    attention, drawing, views = seconds
    return {"attention_seconds": attention, "drawing_seconds": drawing, "views_seconds": views}


def slide(page: Page, address: str) -> Figures:
    """Move through the film of the run; nothing if it has none."""
    page.goto(f"{address}#watch")
    slider, none = page.get_by_role("slider", name="Training time"), page.get_by_text("No film:")
    expect(slider.or_(none).first).to_be_visible(timeout=120_000)
    if none.count():
        return {}
    page.wait_for_load_state("networkidle")
    return {"slider_seconds": slider.evaluate(SLIDE)}


if __name__ == "__main__":
    sys.exit(main())
