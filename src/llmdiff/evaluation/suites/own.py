"""A user's own prompts: a text file with one per line, or JSON lines with `id`, `prompt` and `tags`."""

from pathlib import Path

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt, suite_of
from llmdiff.files import is_blank, parse_json, read_text, text_lines

_KEYS = {"id", "prompt", "tags"}


def read_own(path: Path) -> PromptSuite:
    """Return the suite of a .txt file (one prompt per line) or a .jsonl file. Blank lines are skipped.

    A line of JSON has `prompt`, and may have `id` (default: the line's number) and `tags`, a list or one word.

    Raises:
        ConfigError: the file has another suffix, a line is invalid, or there are no prompts.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ConfigError(f"suite {path}: expected a file that ends in .txt or .jsonl")
    rows = [
        _row(path, number, line)
        if path.suffix == ".jsonl"
        else SuitePrompt(id=str(number), prompt=line.strip())
        for number, line in enumerate(text_lines(read_text(path)), start=1)
        if not is_blank(line)
    ]
    return suite_of(path.name, rows, [path])


def _row(path: Path, number: int, line: str) -> SuitePrompt:
    place = f"suite {path}, line {number}"
    try:
        given = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{place}: no JSON ({error})") from error
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
        raise ConfigError(f"{place}: expected an object with a text named prompt")
    if unknown := sorted(set(given) - _KEYS):
        raise ConfigError(f"{place}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    tags = given.get("tags", [])
    tags = [tags] if isinstance(tags, str) else tags
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"{place}: tags are {tags!r}, expected words")
    return SuitePrompt(id=str(given.get("id", number)), prompt=given["prompt"], tags=tuple(tags))
