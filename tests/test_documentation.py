"""The documentation: its commands run, its links and paths lead somewhere, its tables agree with the code."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from quill.data.corpus import find_corpus
from quill.errors import CorpusError

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page.relative_to(ROOT).as_posix() for folder in ("", "docs/", "benchmarks/") for page in ROOT.glob(f"{folder}*.md")
)
# Two steps of everything: these tests run the commands; docs/results.md says what they reach.
SHORTER = {
    "train": ["--max_iters=2", "--eval_iters=1", "--batch_size=2", "--sample_tokens=10"],
    "v2": ["--max_iters=2", "--eval_iters=1", "--batch_size=2", "--sample_tokens=10"],
    "generate": ["--max_new_tokens=10"],
    "demo": ["--seconds=1"],
    "estimate": ["--batch_size=2"],
}
NOT_RUN = ("pip", "pytest", "ruff", "pyright", "python benchmarks/")  # run by CI; too long, see the test of flags


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """Return the commands in bash blocks and in indented lines, in this order."""
    indented = re.findall(r"^ {4,}((?:quill|python|pip) .*)$", text, re.MULTILINE)
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()] + indented
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def arguments(command: str, shakespeare: bool) -> list[str]:
    """Return the command as words for this Python, cut short, and with pydoc where Shakespeare is not available."""
    words = shlex.split(command, comments=True)
    name = Path(words[1]).stem if words[0] == "python" else words[1]
    words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    if "--resume=True" in words:  # the settings are those of the run
        return words
    flags = [*SHORTER.get(name, []), *(["--minutes=0.01"] if "--minutes" in command else [])]
    if not shakespeare and name in ("train", "v2", "prepare") and not re.search(r"dataset=(?!shakespeare)", command):
        flags.append("--dataset=pydoc")
        if name == "prepare":  # the script has its dataset inside
            words = [sys.executable, "-m", "quill", "prepare"]
    given = {flag.split("=")[0] for flag in flags}
    return [word for word in words if word.split("=")[0] not in given] + flags


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


def serve(words: list[str], folder: Path) -> None:
    """Start a server at a free port, load its page, and stop it."""
    with subprocess.Popen([*words, "--port=0"], cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with urllib.request.urlopen(server.stdout.readline().strip()) as page:
                assert page.status == 200
        finally:
            server.terminate()


@pytest.mark.long
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/how_it_works.md", "docs/results.md"])
def test_every_command_of_a_page_runs_in_the_order_of_the_page(page: str, folder: Path) -> None:
    try:
        find_corpus("shakespeare", offline=True)
        shakespeare = True
    except CorpusError:
        shakespeare = False
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = text.split("\n## ") if page == "docs/results.md" else [text]  # there, each section is a run of its own
    for part in parts:
        for run_folder in folder.glob("out*") if len(parts) > 1 else ():
            shutil.rmtree(run_folder)
        for command in commands(part):
            if command.startswith("quill serve"):
                serve(arguments(command, shakespeare), folder)
            elif not command.startswith(NOT_RUN):
                run(arguments(command, shakespeare), folder)
        for block in blocks(part, "python"):
            block = re.sub(r"minutes=\d+", "minutes=0.01", re.sub(r"max_iters=\d+", "max_iters=2", block))
            for line, expected in re.findall(r"^print\((.*)\) +# (\d+|\[.*?\])(?::|$)", block, re.MULTILINE):
                block += f"\nassert str({line}) == {expected!r}, {line}"
            run([sys.executable, "-c", block], folder)


def test_the_commands_of_a_page_are_found() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("python data/shakespeare/prepare.py", "python v2.py", "quill demo"):
        assert command in commands(text)
    assert len(blocks(text, "python")) == 1
    assert len(commands((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) >= 3


@cache
def help_of(program: str) -> str:
    """Return what a command of ours prints for --help, with every flag."""
    words = shlex.split(program)
    return run([sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words]), "--help"], ROOT)


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_mentions_exists_and_has_the_flags_it_is_given(page: str) -> None:
    """Also the commands inside sentences and tables, and the benchmarks, which take too long to run here."""
    text = (ROOT / page).read_text(encoding="utf-8")
    mentioned = commands(text) + re.findall(r"`((?:quill|python) [^`]+)`", text)
    mentioned += [line for block in blocks(text, "") for line in re.findall(r"^python .*", block, re.MULTILINE)]
    for command in mentioned:
        if program := re.match(r"quill [a-z]\w+|python [\w/]+\.py", command):
            for flag in re.findall(r" (--\w+)", command):
                assert re.search(rf"{flag}\b", help_of(program[0])), command


def test_the_figures_of_the_lessons_are_those_of_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    lessons = import_module("lessons")
    page, results = lessons.PAGE.read_text(encoding="utf-8"), lessons.stored_results()
    assert lessons.with_figures(page, results) == page
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == list(results)
    for name in results:
        assert f"quill experiment {name}\n" in page and (lessons.IMAGES / f"{name}.png").is_file()


def test_the_figures_in_readme_are_those_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """U18: one number for one thing. benchmarks/pictures.py draws the pictures from the same files."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    race, time_to_loss = import_module("race"), import_module("time_to_loss")

    def stored(name: str) -> dict[str, Any]:
        return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))["results"]

    def of(runs: list[dict[str, Any]]) -> tuple[str, str]:
        return f"{median(run['losses'][-1] for run in runs):.3f}", f"{median(map(race.whole_time, runs)):.0f}"

    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    runs, slower = stored("race"), stored("race-without-avx512")
    (loss, seconds), (short, soon), (long, late) = (of(runs[name]) for name in ("nanoGPT", "sprint", "even"))
    assert f"ends at {loss} after {seconds} s; Quill reaches {short} after {soon} s and {long} after {late} s" in readme
    assert f"takes {seconds} seconds and ends at {loss}." in readme
    assert f"took {late} seconds and ended at {long}." in readme

    def meanwhile(runs: dict[str, Any]) -> str:
        pairs = zip(runs["nanoGPT"], runs["even"], strict=True)
        return f"{median(race.loss_at(race.whole_time(theirs), ours) for theirs, ours in pairs):.3f}"

    def share(runs: dict[str, Any]) -> tuple[str, str]:
        reached = median(time_to_loss.seconds_to(1.88, run) for run in runs["sprint"])
        return f"{reached:.1f}", f"1/{median(map(race.whole_time, runs['nanoGPT'])) / reached:.0f}"

    assert f"has reached **{meanwhile(runs)}**" in readme and f"the figures are {meanwhile(slower)}" in readme
    assert f"**{share(runs)[0]} seconds**, start-up included. That is {share(runs)[1]} of nanoGPT's" in readme
    assert f"again {share(slower)[1]}." in readme
    step, text, shell = stored("training"), stored("generation")["long"], stored("generation")["shell"]
    speeds = [f"{step[name]['tokens_per_second']['median']:,.0f}" for name in ("Quill", "nanoGPT", "transformers")]
    assert f"| training, tokens/s | **{speeds[0]}** | {speeds[1]} | {speeds[2]} |" in readme
    memory = [f"{step[name]['peak_megabytes']['median']:,.0f}" for name in ("Quill", "nanoGPT", "transformers")]
    assert f"**{memory[0]} MB** | {memory[1]} MB | {memory[2]} MB |" in readme
    names = ("Quill", "Quill, int8", "nanoGPT", "transformers")
    rates = [f"{text[name]['tokens_per_second']['median']:,.0f}" for name in names]
    assert f"tokens, tokens/s | **{rates[0]}**, int8 **{rates[1]}** | {rates[2]} | {rates[3]} |" in readme
    waits = [f"{shell[name]['seconds']['median']:.2f} s" for name in ("Quill", "nanoGPT")]
    assert f"first character | **{waits[0]}** | {waits[1]} |" in readme
    assert f"`--help` | **{stored('startup')['quill --help']['seconds']['median']:.2f} s** |" in readme


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_to_a_file_or_a_heading_leads_somewhere() -> None:
    for page in [ROOT / page for page in PAGES]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def files_in_tree(page: str) -> set[str]:
    """Return the paths of the files in the page's tree; two spaces of indentation are one folder."""
    tree = re.search(r"```\n(src/quill/\n.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert tree
    found, folders = set(), list[str]()
    for line in tree[1].splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        if name.endswith(".py"):
            found.add("".join(folders))
    return found


def test_the_tree_in_the_architecture_names_every_file_of_the_package_and_no_other() -> None:
    """Apart from the commands in cli/, which are one file each, and the files that every package has."""
    package = {file.relative_to(ROOT).as_posix() for file in (ROOT / "src/quill").rglob("*.py")}
    expected = {path for path in package if "/cli/" not in path and not path.endswith("/__init__.py")}
    named = {path for path in files_in_tree("docs/architecture.md") if path.startswith("src/")}
    assert named - {"src/quill/__init__.py"} == expected - {"src/quill/__main__.py"}


def test_the_table_of_import_rules_is_that_of_the_test() -> None:
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text(encoding="utf-8"))
    assigned = [
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT"
    ]
    rules = {package: set(names) for package, names in ast.literal_eval(assigned[0].value).items()}
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## 2.")[1].split("## 3.")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    packages = set(rules) - {"cli"}
    assert {
        package: packages if names == "all packages" else set(re.findall(r"`([\w.]+)`", names))
        for package, names in rows
    } == rules


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    """Paths of the package are written from src/quill on, as in `training/loop.py`."""
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / path).exists() or (ROOT / "src/quill" / path).exists(), path


ODD_PHRASES = (
    "GPU or patience", "alone or in company", "longest gradient allowed", "1 is as learnt", "of a row moves",
    "taken from the score of", "files anew", "plan anew", "that is no number", "learning its text by heart",
    "everything equally loud", "your minutes can feed", "earns its say", "old, foreign or harmed",
)  # fmt: skip


def test_replaced_phrases_are_not_used_again() -> None:
    """The odd sentences that readers found; names of tests are read like sentences."""
    pages = [
        page for folder in ("src", "tests", "docs", "examples", "benchmarks") for page in (ROOT / folder).rglob("*")
    ]
    pages = [page for page in pages if page.suffix in (".py", ".md", ".yaml", ".ipynb") and page != Path(__file__)]
    for page in [*pages, *ROOT.glob("*.md"), *ROOT.glob("*.py")]:
        text = " ".join(page.read_text(encoding="utf-8").replace("_", " ").split())
        assert [phrase for phrase in ODD_PHRASES if phrase in text] == [], page
