"""What every instrument and experiment returns: numbers, a picture, and a page that explains both.

In a notebook a finding shows its picture. `save` writes NAME.png, NAME.json and NAME.html; the page holds everything
in one file and works without a network.
"""

from __future__ import annotations

import base64
import html
import io
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quill.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
CSS = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; height: auto; background: white; border-radius: 4px }
pre { overflow-x: auto; padding: 1rem; border: 1px solid #8886; font-size: 13px }
""".strip()


class Finding(ABC):
    """A result with its numbers, picture and explanation."""

    title: ClassVar[str] | str
    explanation: ClassVar[str] | str
    """What is shown, how it is computed, and how to read it."""

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Return everything that was measured as JSON values."""

    @abstractmethod
    def figure(self) -> Figure:
        """Return the picture."""

    def png(self) -> bytes:
        """Return the picture as a PNG file."""
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=DOTS_PER_INCH)
        return buffer.getvalue()

    def to_json(self) -> str:
        """Return the numbers as JSON. A float that is not finite is null."""
        about = {"title": self.title, "explanation": self.explanation}
        return json.dumps(plain(about | self.numbers()), ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    def to_html(self, png: bytes | None = None) -> str:
        """Return a page of one file: title, picture, explanation, numbers."""
        picture = base64.b64encode(png or self.png()).decode("ascii")
        title, text = html.escape(self.title), html.escape(self.explanation)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head>\n<body><h1>{title}</h1>\n'
            f'<p>{text}</p>\n<img alt="{title}. The numbers are below." src="data:image/png;base64,{picture}">\n'
            f'<details><summary>Numbers</summary><pre tabindex="0">{html.escape(self.to_json())}</pre></details>\n'
            "</body></html>\n"
        )

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write NAME.png, NAME.json and NAME.html into a folder, and return their paths."""
        folder, png = Path(folder), self.png()
        contents = {".png": png, ".json": self.to_json(), ".html": self.to_html(png)}
        paths = [folder / f"{name}{ending}" for ending in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            write_atomically(path, content)
        return paths

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        png = self.png()
        return {"text/plain": repr(self), "image/png": base64.b64encode(png).decode("ascii")}


def plain(value: Any) -> Any:
    """Return a value made of JSON types: arrays become lists, numbers that are not finite None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
