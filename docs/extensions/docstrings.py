"""Convert LLMDiff's docstrings to reStructuredText: sections become fields, indented equations become code.

Sections are those of CONTRIBUTING.md (Shapes, Units, Raises, Source, Fields). The content of a section is on its
line, or indented below it: `name: text` for each entry, or sentences.
"""

import re
from collections.abc import Iterator
from typing import Any

SECTIONS = ("Shapes", "Units", "Raises", "Source", "Fields", "Example")
_SECTION = re.compile(rf"({'|'.join(SECTIONS)}):(?: +(.*))?$")
# A word alone on its line with indented lines below it is another section, for example "Modules:".
_OWN_SECTION = re.compile(r"([A-Z]\w+):()$")
_ENTRY = re.compile(r"([A-Za-z_][\w., ]*?):(?: +(.*))?$")
_LIST_ITEM = re.compile(r"([-*]|\d+\.) ")


def as_rst(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText. `lines` are dedented as by `inspect.cleandoc`."""
    out: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        found = _SECTION.match(line)
        if not found and index + 1 < len(lines) and lines[index + 1].startswith("    "):
            found = _OWN_SECTION.match(line)
        if found:
            index += 1
            body = []
            while index < len(lines) and (lines[index].startswith(" ") or _blank_inside(lines, index)):
                body.append(lines[index])
                index += 1
            out += ["", *_field(found[1], found[2] or "", body), ""]
            continue
        before = next((old for old in reversed(out) if old.strip()), "")
        after_blank = index > 0 and not lines[index - 1].strip()
        if line.startswith("    ") and after_blank and not _LIST_ITEM.match(before.lstrip()):
            block, index = _indented(lines, index)
            out += [".. code-block:: text", "", *block, ""]
            continue
        out.append(_escaped(line))
        index += 1
    return out


def _blank_inside(lines: list[str], index: int) -> bool:
    """Return whether a blank line is followed by more lines of the section."""
    if lines[index].strip():
        return False
    following = next((line for line in lines[index:] if line.strip()), "")
    return following.startswith(" ")


def _indented(lines: list[str], index: int) -> tuple[list[str], int]:
    block = []
    while index < len(lines) and (lines[index].startswith("    ") or _blank_inside(lines, index)):
        block.append(lines[index])
        index += 1
    return block, index


def _field(name: str, first: str, body: list[str]) -> Iterator[str]:
    indent = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
    body = [line[indent:] for line in body]
    if first:  # a sentence that began on the section's own line
        yield f":{name}: " + " ".join([_escaped(first), *(_escaped(line.strip()) for line in body)]).strip()
        return
    yield f":{name}:"
    entries: list[str] = []
    for line in body:
        entry = _ENTRY.match(line)
        if entry and not line.startswith(" "):
            names = ", ".join(f"``{part.strip()}``" for part in entry[1].split(","))
            entries.append(f"{names}: {_escaped(entry[2] or '')}")
        elif entries:
            entries[-1] += " " + _escaped(line.strip())
        elif line.strip():
            entries.append(_escaped(line.strip()))
    for entry in entries:
        yield f"    - {entry}" if len(entries) > 1 else f"    {entry}"


def _escaped(line: str) -> str:
    """Return a line of prose with all markup but `code` escaped."""
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"(?<!\\)([*|])", r"\\\1", parts[index])
        parts[index] = re.sub(r"_(?=\W|$)", r"\\_", parts[index])
    for index in range(1, len(parts), 2):
        parts[index] = f"``{parts[index].strip('`')}``"
    return "".join(parts)


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
