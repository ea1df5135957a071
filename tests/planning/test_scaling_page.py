"""docs/scaling.md has what the commands print and what the benchmark measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
PLANS = re.findall(r"```bash\nquill (estimate [^\n]*)\n```\n+```text\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_a_plan_for_each_of_two_models() -> None:
    assert len(PLANS) == 2


@pytest.mark.long
@pytest.mark.parametrize(("command", "printed"), PLANS, ids=["124 million", "1.5 billion"])
def test_a_plan_of_the_page_is_what_its_command_prints(command, printed, quill, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = quill(*shlex.split(command))
    assert code == 0
    shown = [line for line in out.splitlines() if not line.startswith(("text ", "source ", "assumed "))]
    assert shown == printed.splitlines()


def test_the_table_of_predictions_is_the_stored_result() -> None:
    file = ROOT / "benchmarks/results/estimate-processes.json"
    for result in json.loads(file.read_text(encoding="utf-8"))["results"]:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {result['case']} |"))
        memory = [f"{result[by]['peak_bytes'] / 1e6:.0f} MB" for by in ("predicted", "measured")]
        predicted, measured = (result[by]["sent_bytes"] for by in ("predicted", "measured"))
        sent = [f"{predicted / 1e6:.2f} MB", f"{measured / 1e6:.2f} MB"] if predicted else ["–", "–"]
        assert [cell.strip() for cell in row.split("|")[2:-1]] == [*memory, *sent]


def test_the_table_of_processes_is_the_stored_result() -> None:
    results = json.loads((ROOT / "benchmarks/results/distributed.json").read_text(encoding="utf-8"))["results"]
    speeds = {name: result["tokens_per_s"] for name, result in results.items()}
    one, two = (speeds[name]["median"] for name in ("1 process, 1 thread", "1 process, 2 threads"))
    for name, speed in speeds.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
        middle, low, high = (speed[each] for each in ("median", "low", "high"))
        held, peak = (results[name][each]["median"] for each in ("held_MB", "peak_MB"))
        shown = [f"{middle:,.0f} ({low:,.0f} to {high:,.0f})", f"{middle / one:.2f}", f"{middle / two:.2f}"]
        assert [cell.strip() for cell in row.split("|")[2:-1]] == [*shown, f"{held:.0f} MB", f"{peak:,.0f} MB"]
