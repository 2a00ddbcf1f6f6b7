"""Texts of generated pages."""


def one_line(text: str | None) -> str:
    """Return a text in one line."""
    return " ".join((text or "").replace("[bold]", "").split())


def cell(text: str) -> str:
    """Return a text as the content of a table's cell."""
    return one_line(text).replace("<", "&lt;").replace("$", "\\$").replace("*", "\\*")
