"""The code layout: which package may import which, no circles between files, files and folders of a readable size."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import quill
import quill.lab

PACKAGE = Path(quill.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE, MOST_FILES = 300, 12  # lines; files in one folder

GROUND = ["errors", "validation", "other_names", "device", "process", "files", "units"]
"""The ground floor: modules that every package may import, and that import nothing of ours but each other."""

# package: what it may import beside itself and the ground floor. A dotted name is a single module.
MAY_IMPORT = {
    "model": [],
    "tokenizers": [],
    "optim": [],
    "data": ["tokenizers"],
    "checkpoints": ["model", "tokenizers"],
    "distributed": [],
    "acceleration": ["model"],
    "evaluation": ["model", "data", "tokenizers", "distributed"],
    "training": [
        "model", "data", "tokenizers", "checkpoints", "optim", "acceleration", "evaluation", "distributed",
    ],
    "engines": ["model", "checkpoints", "acceleration.cuda_graph"],
    "tracking": ["training.events"],
    "generation": ["engines", "tokenizers", "checkpoints", "model", "data", "evaluation"],
    "planning": ["training", "acceleration", "optim", "evaluation", "model", "data", "distributed"],
    "lab": ["model", "tokenizers", "checkpoints", "evaluation"],
    "interop": ["model", "tokenizers", "checkpoints"],
    "runs": [
        "model", "tokenizers", "data", "checkpoints", "optim", "acceleration", "evaluation", "training", "engines",
        "tracking", "generation", "planning", "lab", "distributed",
    ],
    "experiments": [
        "lab", "model", "tokenizers", "data", "checkpoints", "optim", "acceleration", "evaluation", "training",
        "engines", "generation", "planning",
    ],
    "server": [
        "generation", "engines", "model", "tokenizers", "checkpoints", "lab", "experiments", "tracking", "evaluation",
        "data", "runs",
    ],
    "cli": [
        "model", "tokenizers", "data", "checkpoints", "optim", "acceleration", "evaluation", "training", "engines",
        "tracking", "generation", "planning", "lab", "experiments", "interop", "runs", "server", "distributed",
    ],
}  # fmt: skip


def name_of(file: Path) -> str:
    """Return the dotted name of a file, without the leading "quill."."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in FILES}


def imports_of(name: str) -> set[str]:
    """Return the modules of ours that a module imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write imports in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full.removeprefix("quill.") in MODULES else node.module or "")
    return {each.removeprefix("quill.") for each in found if each == "quill" or each.startswith("quill.")} - {name}


def may_import(importer: str, imported: str) -> bool:
    """Say whether the rules above allow this import."""
    package, home = importer.split(".")[0], imported.split(".")[0]
    if importer in ("__init__", "__main__"):  # the public API names modules of all packages
        return True
    if home in GROUND or imported == "quill":  # "quill" itself holds the version, and imports nothing by itself
        return package not in GROUND or GROUND.index(home) < GROUND.index(package)
    if package == home:
        return True
    allowed = MAY_IMPORT.get(package, [])
    return home in allowed or imported in allowed


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_package_may(name: str) -> None:
    assert not [other for other in imports_of(name) if not may_import(name, other)]


def test_the_import_rules_have_no_cycle() -> None:
    """Whatever a package may import, directly or through others, may never import that package."""

    def reachable(package: str) -> set[str]:
        direct = {each.split(".")[0] for each in MAY_IMPORT[package]}
        return direct.union(*map(reachable, direct))

    assert not [package for package in MAY_IMPORT if package in reachable(package)]


def test_every_package_has_a_rule() -> None:
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(MAY_IMPORT)
    assert {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == set(GROUND)


def test_no_two_files_import_each_other_directly_or_through_others() -> None:
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES if name not in ("__init__", "__main__")}

    def circle(name: str, way: tuple[str, ...]) -> tuple[str, ...]:
        if name in way:
            return (*way[way.index(name) :], name)
        if name in done:
            return ()
        found = next((c for other in graph.get(name, ()) if (c := circle(other, (*way, name)))), ())
        done.add(name)
        return found

    done: set[str] = set()
    assert not [c for name in graph if (c := circle(name, ()))]


def test_the_import_tests_find_every_kind_of_import() -> None:
    assert {"model.config", "data.mixed_dataset", "checkpoints.run_folder"} <= imports_of("training.loop")
    assert not may_import("model.gpt", "training.loop") and not may_import("errors", "device")
    assert not may_import("tracking.terminal", "training.loop") and not may_import("runs.start", "cli.main")


@pytest.mark.parametrize("name", MODULES)
def test_a_file_has_at_most_300_lines(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_a_folder_has_at_most_12_files() -> None:
    counts = {folder: len([*folder.glob("*.py")]) - 1 for folder in {file.parent for file in FILES}}
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES}


def test_no_file_is_named_utils_or_the_like() -> None:
    assert not {file.stem for file in FILES} & {"utils", "util", "common", "helpers", "misc", "manager"}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_unpickled_or_evaluated(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "torch.save"} and "pickle" not in called, called


def test_importing_quill_and_its_commands_leaves_torch_alone() -> None:
    code = "import sys, quill, quill.cli.main; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", [quill, quill.lab])
def test_every_public_name_exists_and_has_a_docstring(package: ModuleType) -> None:
    for name in package.__all__:
        public = getattr(package, name)
        assert public.__doc__ and not isinstance(public, ModuleType), name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'gpt5'"):
        package.gpt5  # noqa: B018


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
