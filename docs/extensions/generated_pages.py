"""Pages that are made from the code and from docs/results/*.json while the documentation is built."""

from pathlib import Path
from typing import Any

from claims import claims_text
from reference_pages import api_page, command_line, configuration, packages
from result_pages import ABOUT_FIRST_WORLD, FIRST_WORLD, RESULTS, findings, result_page, splits_table

from llmdiff.world.splits import SPLIT_MEANINGS


def write_pages(folder: Path) -> None:
    """Write every generated page into a folder, and delete other files there."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "command-line.md": command_line(),
        "configuration.md": configuration(),
        "findings.inc": findings(),
        "claims.inc": claims_text(RESULTS, FIRST_WORLD),
        "first-world.inc": ABOUT_FIRST_WORLD,
        "splits.inc": splits_table(SPLIT_MEANINGS),
    }
    for package in packages():
        pages[f"api-{package}.md"] = api_page(package)
    for path in sorted(RESULTS.glob("*.json")):
        pages[f"results-{path.stem}.md"] = result_page(path)
    for name, text in pages.items():
        place = folder / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")
    for old in set(folder.iterdir()) - {folder / name for name in pages}:
        old.unlink()


def _write(app: Any) -> None:
    write_pages(Path(__file__).parents[1] / "generated")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
