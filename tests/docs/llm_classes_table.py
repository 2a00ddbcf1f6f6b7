"""The table of all causal language models in transformers: `python tests/docs/llm_classes_table.py` reads them all.

It takes minutes, and writes `docs/reference/llm-classes.md`.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # where this is run as a command

import transformers

from docs.written import markdown_table, write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "llm-classes.md"
WAYS = {"cached": "one token each", "masked": "under a mask", "sequences": "as texts of their own"}


def parts(rows: Iterable[Any]) -> dict[str, str]:
    """Return what the page has between its marks, of the rows of a sweep."""
    rows = list(rows)
    found = Counter(row.result for row in rows)
    counts = (
        f"Of {len(rows)} configuration classes in transformers {transformers.__version__}, {found['exact']} are read "
        f"exactly, {found['refused']} are refused and {found['not built']} could not be built as tiny models."
    )
    table = markdown_table(
        ["configuration", "result", "tokens alone, or why not"],
        ([f"`{row.name}`", row.result, _how(row).replace("|", "\\|")] for row in rows),
    )
    return {"counts": counts, "classes": table}


def _how(row: Any) -> str:
    """Return how a class is read; of a refusal, what is true of this class."""
    if row.result == "exact":
        return WAYS[row.how]
    reason = str(row.how).rpartition("; expected")[0] or str(row.how)
    reason = re.sub(
        r"^(\(\w+\) )?(cannot be read block by block )?", "", reason.removeprefix(row.name).lstrip(": ")
    )
    # What follows an error's class, where it says enough.
    return re.sub(r"^\(ValueError: (.*)\)$", r"\1", reason).strip("()")


if __name__ == "__main__":
    sys.path.append(str(ROOT / "tests" / "llmdiff"))
    from language.class_sweep import sweep
    from language.tiny_configs import causal_configs

    transformers.logging.set_verbosity_error()
    write(PAGE, parts(sweep(causal_configs())))
