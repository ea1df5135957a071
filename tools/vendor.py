"""Fetch the JavaScript libraries of the page from the npm registry, check them, and write server/static/vendor.

    python tools/vendor.py

The page has no build step and its Content-Security-Policy allows no import map, so imports between the libraries become
relative paths. `SOURCES.json` records each file's package, version and SHA-256; a test compares them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "src" / "quill" / "server" / "static" / "vendor"
REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Package:
    """A package of the registry, and which of its files are kept under which name."""

    name: str
    version: str
    integrity: str
    """SHA-512 of the archive, as the registry writes it"""
    license: str
    files: dict[str, str]


PACKAGES = [
    Package(
        "preact",
        "11.2.0",
        "sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        "MIT",
        {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js", "LICENSE": "preact.LICENSE"},
    ),
    Package(
        "htm",
        "3.1.1",
        "sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        "Apache-2.0",
        {"dist/htm.module.js": "htm.js", "LICENSE": "htm.LICENSE"},
    ),
    Package(
        "uplot",
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        "MIT",
        {"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css", "LICENSE": "uplot.LICENSE"},
    ),
]


def main() -> None:
    """Write every file and SOURCES.json."""
    sources = {}
    for package in PACKAGES:
        archive = fetch(package)
        for path, name in package.files.items():
            contents = adapt(name, archive[path])
            (VENDOR / name).write_bytes(contents)
            sources[name] = {
                "package": f"{package.name}@{package.version}",
                "path": path,
                "license": package.license,
                "sha256": hashlib.sha256(contents).hexdigest(),
            }
    text = json.dumps(sources, indent=2, sort_keys=True) + "\n"
    (VENDOR / "SOURCES.json").write_text(text, encoding="utf-8")


def fetch(package: Package) -> dict[str, bytes]:
    """Return the files of a package's archive by path; SystemExit if its checksum differs."""
    address = f"{REGISTRY}/{package.name}/-/{package.name}-{package.version}.tgz"
    with urllib.request.urlopen(address) as response:
        archive = response.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != package.integrity:
        raise SystemExit(f"{address} has the checksum {found} instead of {package.integrity}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        members = {each.name.removeprefix("package/"): files.extractfile(each) for each in files if each.isfile()}
        return {name: member.read() for name, member in members.items() if member is not None}


def adapt(name: str, contents: bytes) -> bytes:
    """Return a file with relative imports, as an ES module, without the address of its source map."""
    if not name.endswith(".js"):
        return contents
    lines = contents.decode("utf-8").replace('from"preact"', 'from"./preact.js"').splitlines()
    lines = [line for line in lines if not line.startswith("//# sourceMappingURL=")]
    if name == "uplot.js":  # the small build is a script that sets a global
        lines.append("export default uPlot;")
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    main()
