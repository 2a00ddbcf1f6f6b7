"""A user's own prompts: a text file with one a line, or JSON lines with `id`, `prompt` and `tags`."""

from pathlib import Path

from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.suite import PromptSuite, SuitePrompt, suite_of
from llmdiff.files import is_blank, parse_json, read_text, text_lines

_KEYS = {"id", "prompt", "tags"}


def read_own(path: Path) -> PromptSuite:
    """Return the suite of a .txt file (one prompt a line, empty lines skipped) or a .jsonl file.

    A line of JSON has `prompt`, and may have `id` (else its line's number) and `tags`, a list or one word.

    Raises:
        ConfigError: another kind of file, a line that is none of this, or no prompts.
    """
    lines = text_lines(read_text(path))
    if path.suffix == ".txt":
        rows = [
            SuitePrompt(id=str(number), prompt=line.strip())
            for number, line in enumerate(lines, start=1)
            if not is_blank(line)
        ]
    elif path.suffix == ".jsonl":
        rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if not is_blank(line)]
    else:
        raise ConfigError(f"suite {path}: expected a file that ends in .txt or .jsonl")
    return suite_of(path.name, rows, [path])


def _row(path: Path, number: int, line: str) -> SuitePrompt:
    try:
        given = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"suite {path}, line {number}: no JSON ({error})") from error
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
        raise ConfigError(f"suite {path}, line {number}: expected an object with a text named prompt")
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        raise ConfigError(
            f"suite {path}, line {number}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}"
        )
    tags = given.get("tags", [])
    tags = [tags] if isinstance(tags, str) else tags
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"suite {path}, line {number}: tags are {tags!r}, expected words")
    return SuitePrompt(id=str(given.get("id", number)), prompt=given["prompt"], tags=tuple(tags))
