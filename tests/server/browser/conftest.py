"""Fixtures of the tests in a browser: a server, and a page where any error or foreign request fails the test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

from quill.cli.main import main

expect.set_options(timeout=60_000)  # a busy machine takes long to load a model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<img src=x onerror=alert(1)>"
"""The name of a run that is markup."""


@pytest.fixture(scope="session")
def runs(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tiny runs: `letters`, of characters, and one of bytes whose name is markup."""
    folder = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(trained.out, folder / "letters")
    flags = [flag for flag in trained.flags if not flag.startswith("--out_dir")]
    assert main(["train", *flags, "--tokenizer=byte", f"--out_dir={folder / EVIL}"]) == 0
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """The address of `quill serve` for these runs, in a process of its own."""
    words = [sys.executable, "-m", "quill", "serve", str(runs), "--port=0", "--engine=torch"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8") as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip().rstrip("/")
        assert address.startswith("http://localhost:")
        yield address
        server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Its event loop ends with the module, because other tests of this process have loops of their own."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """What the pages of a test did that they must not do; the test fails if it is not empty at its end."""
    problems: list[str] = []
    yield problems
    assert problems == []


@pytest.fixture
def new_page(browser: Browser, problems: list[str]) -> Iterator[OpenPage]:
    """Open pages with options such as `color_scheme`.

    A problem is an error in the console or a script, a violation of the policy, a dialog, or a request beyond loopback.
    """
    contexts = []

    def dismiss(dialog: Dialog) -> None:
        problems.append(dialog.message)
        dialog.dismiss()

    def watched(context: BrowserContext) -> BrowserContext:
        context.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        context.on("weberror", lambda error: problems.append(str(error.error)))
        context.on("dialog", dismiss)
        context.on("request", lambda request: problems.append(request.url) if not is_local(request.url) else None)
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " console.error('policy violation', event.violatedDirective, event.blockedURI))"
        )
        contexts.append(context)
        return context

    def open_page(**options: Any) -> Page:
        return watched(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})).new_page()

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page: OpenPage) -> Page:
    """A new page with the usual options."""
    return new_page()


def is_local(address: str) -> bool:
    """Return whether a request to this address stays on this machine."""
    parts = urlsplit(address)
    return parts.scheme in ("data", "blob") or parts.hostname in ("localhost", "127.0.0.1")
