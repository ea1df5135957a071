"""The page's frame: files, header and tabs."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from write_tab import write

import quill

STATIC = Path(quill.__file__).parent / "server" / "static"


def test_every_library_of_the_page_is_the_file_that_its_record_names() -> None:
    sources = json.loads((STATIC / "vendor" / "SOURCES.json").read_text(encoding="utf-8"))
    files = {file.name: file.read_bytes() for file in (STATIC / "vendor").iterdir() if file.name != "SOURCES.json"}
    assert {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()} == {
        name: source["sha256"] for name, source in sources.items()
    }
    packages = {source["package"].split("@")[0] for source in sources.values()}
    assert {f"{package}.LICENSE" for package in packages} <= set(files)


def test_every_import_of_the_page_is_a_relative_path_to_a_file_that_exists() -> None:
    for script in STATIC.rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        found = re.findall(r"""(?:\bfrom\s*|\bimport\s*\(?\s*)["']([^"']+)["']""", text)
        assert all(path.startswith(".") and (script.parent / path).is_file() for path in found), script


def test_the_page_has_no_inline_script_or_style() -> None:
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"https?://", text)


@pytest.mark.long
def test_the_page_shows_the_chosen_model_and_its_tabs(page: Page, address: str) -> None:
    page.goto(f"{address}/#write?model=letters")
    expect(page.get_by_label("Model")).to_have_value("letters")
    current = page.get_by_role("navigation").locator("[aria-current=page]")
    expect(current).to_have_text("Write")


@pytest.mark.long
def test_a_key_in_the_address_is_sent_to_the_server_and_leaves_the_address(page: Page, address: str) -> None:
    with page.expect_request("**/v1/models") as request:
        page.goto(f"{address}/#key=secret")
    expect(page.get_by_label("Model")).to_be_visible()
    assert request.value.headers["authorization"] == "Bearer secret"
    assert "secret" not in page.url


@pytest.mark.long
def test_in_an_empty_folder_the_model_that_comes_with_quill_writes_at_once(page: Page, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "quill", "serve", "--port=0", "--device=cpu"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, encoding="utf-8") as server:
        assert server.stdout is not None
        page.goto(server.stdout.readline().strip())
        text = write(page, "ROMEO:")
        assert text.startswith("ROMEO:") and len(text) > 100
        expect(page.locator("header")).to_contain_text("tiny")
        server.terminate()


def test_the_benchmark_of_the_page_runs_and_prints_its_table(browser: Browser, runs: Path) -> None:
    benchmark = Path(__file__).parents[3] / "benchmarks" / "page.py"
    words = [sys.executable, str(benchmark), f"--run={runs / 'letters'}", "--runs=1"]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "first paint" in done.stdout
