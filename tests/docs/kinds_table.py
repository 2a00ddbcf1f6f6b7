"""The tables of what is tested per LLM in docs/how-to/llms.md: `python tests/docs/kinds_table.py` writes them."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where this is run as a command

from tiny.llm_kinds import KINDS
from tiny.refused_llms import REFUSED

from docs.written import markdown_table, write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "llms.md"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One column of the matrix and the test in `tests/llmdiff/language/` that fills it for every row of `KINDS`."""

    title: str
    what: str
    module: str
    test: str


CHECKS: tuple[Check, ...] = (
    Check(
        title="masks",
        what="context updates against a causal mask and lone updates against a diagonal mask (with and without "
        "the BOS column), both computed without a cache, with a template's cached prefix and without",
        module="test_blocks",
        test="test_updates_agree_with_explicit_masks",
    ),
    Check(
        title="padding",
        what="the same states alone, in a batch, padded left, padded right",
        module="test_blocks",
        test="test_same_alone_batched_left_or_right_padded",
    ),
    Check(
        title="encoding",
        what="the same text encoding alone, in a batch and again",
        module="test_encoding",
        test="test_encodes_the_same_alone_batched_and_again",
    ),
    Check(
        title="dtypes",
        what="bfloat16 and float16 close to float32, and their encoding summed in float32",
        module="test_kinds",
        test="test_half_precision_is_close_and_summed_in_float32",
    ),
    Check(
        title="bytes",
        what="emoji, Chinese and Devanagari, split into bytes, encode the same alone and in a batch",
        module="test_kinds",
        test="test_text_split_into_bytes_encodes",
    ),
)


def tested_table() -> str:
    """Return the table of the LLMs that are tested, one row each."""
    titles = [check.title for check in CHECKS]
    header = ["LLM", "for example", *titles, "real weights", "GPU"]
    rows = (
        [
            row.title,
            f"`{row.examples}`",
            *("tiny random" for _ in titles),
            row.real_weights or "no",
            "yes" if row.accelerator else "no",
        ]
        for row in KINDS
    )
    return markdown_table(header, rows)


def checks_list() -> str:
    """Return what each column of the table stands for, as a list."""
    return "\n".join(f"- **{check.title}**: {check.what}" for check in CHECKS)


def refused_table() -> str:
    """Return the table of what is refused by name, and why."""
    return markdown_table(["refused", "because"], ([row.title, row.reason] for row in REFUSED))


def parts() -> dict[str, str]:
    """Return what the page has between its marks."""
    return {"tested": tested_table(), "checks": checks_list(), "refused": refused_table()}


if __name__ == "__main__":
    write(PAGE, parts())
