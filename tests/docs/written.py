"""The parts of pages that commands write, each between `<!-- NAME -->` and `<!-- end of NAME -->`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def on_page(page: Path, name: str) -> str:
    """Return what a page has between the marks of this name."""
    found = _between(name).search(page.read_text(encoding="utf-8"))
    assert found is not None, f"{page} has no place for {name}"
    return found.group()


def write(page: Path, parts: Mapping[str, str]) -> None:
    """Replace the parts of a page by these, named as their marks."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        text, count = _between(name).subn(lambda _, part=part: part, text)  # type: ignore[misc]
        assert count == 1, f"{page} has {count} places for {name}"
    page.write_text(text, encoding="utf-8")


def _between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*(?=\n<!-- end of {name} -->)", re.DOTALL)
