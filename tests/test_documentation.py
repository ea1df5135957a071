"""What the documentation says to type runs, and says what it shows."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quill.data.corpus import find_corpus
from quill.errors import CorpusError

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "docs/how_it_works.md"]
# Two steps of everything: the commands are tested here, what they reach is measured in docs/results.md.
SHORTER = {
    "train": ["--max_iters=2", "--eval_iters=1", "--batch_size=2", "--sample_tokens=10"],
    "v2": ["--max_iters=2", "--eval_iters=1", "--batch_size=2", "--sample_tokens=10"],
    "generate": ["--max_new_tokens=10"],
    "demo": ["--seconds=1"],
    "estimate": ["--batch_size=2"],
}
RUN_BY_CI = ("pip", "pytest", "ruff", "pyright")


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language; in a page without fences, indented lines count as bash."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    indented = re.findall(r"^ {4,}((?:quill|python|pip) .*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()] + indented
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def arguments(command: str, shakespeare: bool) -> list[str]:
    """Return the command as words for this Python, cut short, and with pydoc where Shakespeare cannot be had."""
    words = shlex.split(command, comments=True)
    name = Path(words[1]).stem if words[0] == "python" else words[1]
    words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    if not shakespeare and name in ("train", "v2", "prepare") and not re.search(r"dataset=(?!shakespeare)", command):
        words.append("--dataset=pydoc")
    words = [re.sub(r"^--minutes=.*", "--minutes=0.01", word) for word in words]
    return words + SHORTER.get(name, [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the clone's scripts, a text of one's own, and a few letters."""
    folder = tmp_path_factory.mktemp("reader")
    for script in ("train.py", "generate.py", "v2.py", "data/shakespeare/prepare.py"):
        (folder / script).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / script, folder / script)
    (folder / "letters").mkdir()
    text = "Dear reader, it was a dark and stormy night when I last wrote to you.\n" * 60
    for name in ("my.txt", "letters/first.txt", "letters/second.md"):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs_in_the_order_of_the_page(page: str, folder: Path) -> None:
    try:
        find_corpus("shakespeare", offline=True)
        shakespeare = True
    except CorpusError:
        shakespeare = False
    for command in commands(page):
        if not command.startswith(RUN_BY_CI):
            run(arguments(command, shakespeare), folder)
    for block in blocks(page, "python"):
        for line, expected in re.findall(r"^print\((.*)\) +# (\d+|\[.*?\])(?::|$)", block, re.MULTILINE):
            block += f"\nassert str({line}) == {expected!r}, {line}"
        run([sys.executable, "-c", block], folder)


def test_the_test_sees_the_commands() -> None:
    found = commands("README.md")
    for founding in ("python data/shakespeare/prepare.py", "python v2.py", "quill demo"):
        assert founding in found
    assert len(blocks("README.md", "python")) == 1 and len(commands("CONTRIBUTING.md")) >= 3


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_of_the_house_is_true() -> None:
    """Every file named in the architecture's tree exists, and every file of the package is named there."""
    tree = re.search(r"```\nsrc/quill/\n(.*?)```", (ROOT / "docs/architecture.md").read_text("utf-8"), re.DOTALL)
    assert tree
    named = set(re.findall(r"\b([a-z_0-9]+\.py)\b", tree[1]))
    package = {file.name for file in (ROOT / "src" / "quill").rglob("*.py")} - {"__init__.py", "__main__.py"}
    in_cli = {file.name for file in (ROOT / "src" / "quill" / "cli").glob("*.py")}
    assert package - in_cli <= named, package - in_cli - named
    scripts = {"train.py", "generate.py", "v2.py", "prepare.py", "test_architecture.py", "__init__.py"}
    assert named <= package | scripts, named - package - scripts
