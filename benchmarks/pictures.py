"""The pictures in docs/images that compare contestants, drawn again from benchmarks/results. Nothing is measured.

python benchmarks/pictures.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import generation
import gpu
import race
import time_to_loss

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"


def stored(name: str) -> dict[str, Any]:
    """Return the JSON that a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> int:
    """Draw each picture."""
    for name in ("race", "race-without-avx512"):
        run = stored(name)
        race.draw(run["results"], run["losses"][0], run["hardware"], str(IMAGES / f"{name}.png"))
    run = stored("time_to_loss")
    title = time_to_loss.TITLE.format(cores=run["hardware"]["cores"])
    time_to_loss.draw(run["results"], run["loss"], title, str(IMAGES / "time_to_loss.png"))
    curves = stored("gpu-race")["results"]["race"]
    nanogpt = next(iter(curves.values()))
    time_to_loss.draw(curves, gpu.best_of(nanogpt), gpu.TITLE, str(IMAGES / "gpu-race.png"))
    one = stored("generation")["results"]["one"]
    speeds = {name: figures["tokens_per_second"]["median"] for name, figures in one.items()}
    generation.draw(speeds, str(IMAGES / "generation.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
