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
from quill.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
MOST_NUMBERS = 200_000  # characters of JSON in a page
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
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        buffer, figure = io.BytesIO(), self.figure()
        figure.set_dpi(DOTS_PER_INCH)
        FigureCanvasAgg(figure).print_png(buffer)  # savefig draws twice where there is a layout engine
        return buffer.getvalue()

    def to_json(self) -> str:
        """Return the numbers as JSON. A float that is not finite is null."""
        about = {"title": self.title, "explanation": self.explanation}
        entries = plain(about | self.numbers()).items()
        lines = [f"{dump(name)}: {dump(value)}" for name, value in entries]  # one line each; indent= is slow
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def to_html(self, png: bytes | None = None, numbers: str | None = None) -> str:
        """Return a page of one file: title, picture, explanation, and the numbers unless they are very many.

        `png` and `numbers` are those of `png()` and `to_json()`, if they have been made already.
        """
        picture = base64.b64encode(png or self.png()).decode("ascii")
        title, numbers = html.escape(self.title), numbers or self.to_json()
        if len(numbers) > MOST_NUMBERS:
            shown = f"<p>The numbers ({format_bytes(len(numbers))}) are in the .json file beside this page.</p>"
        else:
            shown = f'<details><summary>Numbers</summary><pre tabindex="0">{html.escape(numbers)}</pre></details>'
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head>\n<body><h1>{title}</h1>\n'
            f'{self.explained()}\n<img alt="{title}" src="data:image/png;base64,{picture}">\n{shown}\n</body></html>\n'
        )

    def explained(self) -> str:
        """Return the explanation as HTML."""
        return f"<p>{html.escape(self.explanation)}</p>"

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write NAME.png, NAME.json and NAME.html into a folder, and return their paths."""
        folder, png, numbers = Path(folder), self.png(), self.to_json()
        contents = {".png": png, ".json": numbers, ".html": self.to_html(png, numbers)}
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
        whole = value.dtype.kind in "biu" or (value.dtype.kind == "f" and bool(np.isfinite(value).all()))
        return value.tolist() if whole else plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def dump(value: Any) -> str:
    """Return a JSON value in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, check_circular=False)
