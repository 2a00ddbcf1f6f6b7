"""Tables in Markdown of what is tested per LLM, and how: `python -m llmdiff.language.kinds_table`."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmdiff.language.kinds import KINDS
from llmdiff.language.support import REFUSED


@dataclass(frozen=True, kw_only=True)
class Check:
    """One column of the matrix and the test in `tests/language/` that fills it for every row of `KINDS`."""

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
    """Returns the table of the LLMs that are tested, one row each."""
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


def short_table() -> str:
    """Returns the same table with one column for all checks, for the README."""
    rows = (
        [
            row.title,
            f"`{row.examples}`",
            f"{len(CHECKS)} of {len(CHECKS)} checks",
            row.real_weights or "no",
            "yes" if row.accelerator else "no",
        ]
        for row in KINDS
    )
    return markdown_table(["LLM", "for example", "tiny random", "real weights", "GPU"], rows)


def checks_list() -> str:
    """Returns what each column of the table stands for, as a list."""
    return "\n".join(f"- **{check.title}**: {check.what}" for check in CHECKS)


def refused_table() -> str:
    """Returns the table of what is refused by name, and why."""
    return markdown_table(["refused", "because"], ([row.title, row.reason] for row in REFUSED))


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(short_table(), tested_table(), checks_list(), refused_table(), sep="\n\n")
