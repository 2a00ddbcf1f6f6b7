"""Write matplotlib figures and records as files."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmdiff.files import write_whole


def figure_bytes(figure: Any, kind: str = "png", *, dpi: int = 90) -> bytes:
    """Return the figure as a file of this kind. The same figure gives the same bytes."""
    import matplotlib

    file = io.BytesIO()
    # SVG: a fixed salt and no date.
    with matplotlib.rc_context({"svg.hashsalt": "llmdiff"}):
        figure.savefig(file, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def data_address(png: bytes) -> str:
    """Return a data URL of the picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def json_text(record: Any) -> str:
    """Return a record as JSON text."""
    return json.dumps(record, indent=1) + "\n"


def save_record(name: str, record: Any, text: str, figure: Any, folder: Path) -> list[Path]:
    """Write NAME.json, NAME.md, NAME.png and NAME.svg into the folder; return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    contents: dict[str, str | bytes] = {
        f"{name}.json": json_text(record),
        f"{name}.md": text,
        f"{name}.png": figure_bytes(figure),
        f"{name}.svg": figure_bytes(figure, "svg"),
    }
    return save_all(folder, contents)


def save_all(folder: Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Write files by name into the folder; return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]
