"""The page of hostile inputs counts the tests that there are."""

from docs.hostile_table import collected, table, table_on_page


def test_the_page_counts_the_tests() -> None:
    assert table_on_page() == table(collected()), "run python tests/docs/hostile_table.py"
