"""The house keeps its shape: imports go one way, rooms stay readable, and nothing here can run hidden code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quill

PACKAGE = Path(quill.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# room: what it may import of ours. The ground floor (errors, device, the package itself) is open to all.
GROUND_FLOOR = {"errors", "device", "__init__"}
MAY_IMPORT = {
    "model": set(),
    "text": set(),
    "training": {"model", "text"},
    "generation": {"model", "text", "training.checkpoint"},
    "lab": {"model", "text", "training.checkpoint"},
    "interop": {"model", "text", "training.checkpoint"},
    "serving": {"generation", "lab"},
    "cli": {"model", "text", "training", "generation", "lab", "interop", "serving"},
}


def imported_from_quill(file: Path) -> set[str]:
    """Return what a file imports of ours, as dotted names without the leading "quill."."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "quill" else {base}
    return {name.removeprefix("quill.") for name in names if name == "quill" or name.startswith("quill.")}


def room_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    room = room_of(file)
    for name in imported_from_quill(file):
        home = name.split(".")[0]
        if home in GROUND_FLOOR or home == room or home == "__version__":
            continue
        if room in ("__init__", "__main__"):  # the door of the house opens on every room
            continue
        assert room in MAY_IMPORT, f"the ground floor may not import quill.{name}"
        allowed = MAY_IMPORT[room]
        assert home in allowed or any(name == a or name.startswith(f"{a}.") for a in allowed), (
            f"{room} may not import quill.{name}"
        )


def test_the_import_test_sees_imports() -> None:
    seen = imported_from_quill(PACKAGE / "training" / "loop.py")
    assert {"model.build", "text.dataset", "training.checkpoint"} <= seen


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_room_can_be_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350


def test_no_room_is_named_after_nothing() -> None:
    assert not {file.stem for file in FILES} & {"utils", "util", "common", "helpers", "misc", "manager"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_evaluated(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "torch.save"} and "pickle" not in called, called


def test_importing_quill_and_its_commands_leaves_torch_alone() -> None:
    code = "import sys, quill, quill.cli.main; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in quill.__all__:
        assert getattr(quill, name).__doc__, name
    assert set(quill.__all__) <= set(dir(quill))
    with pytest.raises(AttributeError, match="no attribute 'gpt5'"):
        quill.gpt5  # noqa: B018
