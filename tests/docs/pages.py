"""The code blocks of README, tutorials and how-to pages, each with the mark that says how it is tested.

A mark is an invisible comment on the line before the block:

    <!-- docs-test: check (why it cannot run here) -->     syntax, names, options and arguments only
    <!-- docs-test: heavy (what takes long) -->            the same; run with `-m docs`
    <!-- docs-test: heavy --preset test (why) -->          run with these words behind its last command
    <!-- docs-test: serves /health (of what) -->           run with `-m docs`, asked for that path, ended
    <!-- docs-test: quote (of whose code) -->              not ours: syntax only

A Python block without a mark is run in every test run, on tiny random models. A shell block needs a mark.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs" / "index.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
)
KINDS = ("check", "heavy", "serves", "quote")
_MARK = re.compile(r"<!-- docs-test: (\w+) ?(.*?) ?\((.+)\) -->")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    kind: str = ""
    more: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in ("bash", "console")

    @property
    def script(self) -> str:
        """The commands; of a console's, those behind the prompt. What a mark adds stands behind the last."""
        lines = self.text.rstrip().splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        if self.kind == "heavy" and self.more:
            lines[-1] = f"{re.sub(r' +#.*', '', lines[-1])} {self.more}"
        return "\n".join(lines)


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    index = 0
    while index < len(lines):
        fence = re.match(r"```(bash|console|python)$", lines[index])
        if fence:
            end = lines.index("```", index)
            mark = _MARK.fullmatch(lines[index - 1]) if index else None
            text = "\n".join(lines[index + 1 : end]) + "\n"
            yield Block(page, index + 1, fence[1], text, *(mark.groups()[:2] if mark else ()))
            index = end
        index += 1


def every_block() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def commands(script: str) -> Iterator[list[str]]:
    """The words of every command; comments and where output goes are left out."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            yield words
