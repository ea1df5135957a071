"""The figures and pictures of docs/lessons.md, taken from the results of `quill experiment all`. Nothing is measured.

    quill experiment all
    python benchmarks/lessons.py experiments

copies each result and its picture, and writes the figures into the page. Without a folder the page is written again
from the stored results.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quill.experiments.catalog import CATALOG
from quill.units import format_duration

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "lessons.md"
IMAGES = ROOT / "docs" / "images" / "lessons"
RESULTS = Path(__file__).parent / "results" / "lessons"


def main() -> int:
    """Copy results, if a folder of them is named, and write the page."""
    parser = ArgumentParser(description="The figures and pictures of docs/lessons.md.")
    parser.add_argument("folder", nargs="?", type=Path, help="where quill experiment wrote its results")
    arguments = parser.parse_args()
    if arguments.folder:
        for folder in (IMAGES, RESULTS):
            folder.mkdir(parents=True, exist_ok=True)
        for name in CATALOG:
            if (arguments.folder / name / "result.json").is_file():
                shutil.copyfile(arguments.folder / name / "result.json", RESULTS / f"{name}.json")
                shutil.copyfile(arguments.folder / name / "result.png", IMAGES / f"{name}.png")
            else:
                print(f"{arguments.folder} has no result of {name}: the stored one stays", file=sys.stderr)
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), stored_results()), encoding="utf-8")
    return 0


def stored_results() -> dict[str, dict[str, Any]]:
    """Return the stored result of each experiment."""
    return {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in CATALOG}


def with_figures(page: str, results: Mapping[str, dict[str, Any]]) -> str:
    """Return the page with the figures of these results between its markers."""
    page = _between(page, "overview", overview(results))
    for name, result in results.items():
        page = _between(page, name, figures(result))
    return page


def _between(page: str, name: str, text: str) -> str:
    """Return the page with a text between the markers of this name."""
    markers = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    page, count = markers.subn(lambda found: f"{found[1]}{text}\n{found[2]}", page)
    if count != 1:
        raise ValueError(f"the page has {count} places for the figures of {name}")
    return page


def overview(results: Mapping[str, dict[str, Any]]) -> str:
    """Return the table of all verdicts."""
    rows = ["| experiment | claim | verdict |", "|---|---|---|"]
    for name, result in results.items():
        rows.append(f"| [`{name}`](#{name}) | {result['claim']} | **{_decided(result)['verdict']}** |")
    return "\n".join(rows)


def figures(result: dict[str, Any]) -> str:
    """Return verdict, effects and control of an experiment as Markdown."""
    decided = _decided(result)
    lines = [f"**Verdict: {decided['verdict']}.** {result['measure']}", ""]
    lines += ["| effect | measured, 95 % interval | margin | |", "|---|---|---|---|"]
    lines += [_row(effect, effect["verdict"]) for effect in decided["effects"]]
    lines += [_row(effect, "control") for effect in decided["controls"]]
    lines += ["", f"Control: {decided['control']}", "", f"The opposite would be: {result['opposite']}", ""]
    lines.append(f"Time: {format_duration(result['timings']['seconds'])}.")
    return "\n".join(lines)


def _decided(result: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a result that has the verdict: the timings, if the verdict depends on them."""
    return result if "verdict" in result else result["timings"]


def _row(effect: dict[str, Any], verdict: str) -> str:
    value = effect["interval"]
    measured = f"{value['mean']:+.3f} {effect['unit']} ({value['low']:+.3f} to {value['high']:+.3f})"
    return f"| {effect['name']} | {measured} | {effect['margin']:g} | {verdict} |"


if __name__ == "__main__":
    sys.exit(main())
