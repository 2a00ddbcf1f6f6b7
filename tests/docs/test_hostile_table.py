"""The page of hostile inputs counts the tests that there are."""

from docs.hostile_table import PAGE, collected, table
from docs.written import on_page


def test_the_page_counts_the_tests() -> None:
    assert on_page(PAGE, "table") == table(collected()), "run python tests/docs/hostile_table.py"
