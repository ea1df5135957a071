"""`quill experiment`: check a lesson about GPTs on models that are trained and measured here, and draw a picture."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quill.files import expand_home

if TYPE_CHECKING:
    from quill.cli.arguments import Parser
    from quill.experiments.experiment import Result

SECONDS_BETWEEN_LINES = 10.0


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill experiment` to the parser."""
    parser.take_bare_word("name")
    parser.add_argument("--name", type=str, help="which experiment, or all; without a name the experiments are listed")
    parser.add_argument("--quick", action="store_true", help="a smaller experiment: at most a minute on two cores")
    parser.add_argument("--seed", type=int, help="decides every random choice; by default the experiment's own")
    parser.add_argument(
        "--dataset",
        type=str,
        default="shakespeare",
        help="shakespeare, tinystories, pydoc, or the path of your own text: a file, a folder or a glob",
    )
    parser.add_argument("--run", type=str, help="folder of a run to look into, with communication, heads or refinement")
    parser.add_argument("--data_dir", type=str, default="data", help="folder for prepared token files")
    parser.add_argument(
        "--out_dir", type=str, default="experiments", help="folder for the results: one folder for each experiment"
    )


def run(arguments: argparse.Namespace) -> int:
    """List the experiments, or run one of them or all."""
    from quill.experiments.catalog import CATALOG, load_experiment

    if arguments.name is None:
        print(listing())
        return 0
    from quill.checkpoints.run_folder import require_folder
    from quill.process import keep_freed_memory
    from quill.validation import require

    if arguments.seed is not None:
        require(0 <= arguments.seed < 2**31, "seed", arguments.seed, "from 0 to 2**31 - 1")
    names = list(CATALOG) if arguments.name == "all" else [arguments.name]
    if arguments.name != "all":
        experiment = load_experiment(arguments.name)  # a wrong name is reported first
        looks = hasattr(experiment.settings, "run")
        require(
            arguments.run is None or looks, "run", arguments.run, f"left out: {arguments.name} trains its own models"
        )
    folder = expand_home(arguments.out_dir)
    require_folder(folder)
    keep_freed_memory()
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is reported first
        result, files = run_one(name, arguments, folder / name)
        lines = [f"experiment {name}: {CATALOG[name][1]}", result.report(), *(f"file       {file}" for file in files)]
        print("\n".join(["", *lines] if number else lines), flush=True)
    return 0


def run_one(name: str, arguments: argparse.Namespace, folder: Path) -> tuple[Result, list[Path]]:
    """Run one experiment, and return its result and the files that were written."""
    from quill.experiments.catalog import load_experiment
    from quill.tracking.phase_display import PhaseDisplay

    experiment = load_experiment(name)
    given: dict[str, Any] = {"dataset": arguments.dataset, "data_dir": str(arguments.data_dir)}
    if arguments.seed is not None:
        given["seed"] = arguments.seed
    if arguments.run is not None and hasattr(experiment.settings, "run"):
        given["run"] = str(expand_home(arguments.run))
    settings = dataclasses.replace(experiment.quick if arguments.quick else experiment.settings, **given)
    with PhaseDisplay(between_lines=SECONDS_BETWEEN_LINES) as display:
        result = experiment.run(settings, lambda what, share: display(f"{name}: {what}", share))
    return result, result.save(folder)


def listing() -> str:
    """Return the names of the experiments with their lessons, and how to run one."""
    from quill.cli.parsing.help_page import table, terminal_width, wrap
    from quill.experiments.catalog import CATALOG

    width = terminal_width()
    rows = [(f"quill experiment {name}", lesson) for name, (_, lesson) in CATALOG.items()]
    lines = table(rows, width, left=max(len(name) for name, _ in rows))
    ending = "Each takes some minutes on two cores, or less than one with --quick. quill experiment all runs them all."
    return "\n".join([*lines, "", *wrap(ending, width)])
