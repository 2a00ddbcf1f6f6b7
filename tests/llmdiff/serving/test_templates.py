"""Pages from templates: every value is escaped, a value that lacks is an error, pages of both packages share a base."""

import pytest
from jinja2 import UndefinedError

from llmdiff.serving.templates import macro, render

TEXT = "<b>${x}</b> & 'y'"


def test_texts_are_escaped_and_nothing_comes_from_elsewhere() -> None:
    report = {"llms": {}, "date": TEXT, "command": TEXT, "treatment": [TEXT]}
    report |= {"settings": {"llm": TEXT}, "hardware": {}, "versions": {}}
    tables = [(TEXT, [["", TEXT], [TEXT, "1"]])]
    page = render("compare-llms.html", package="llmdiff_lab", report=report, tables=tables, plot="data:,")
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page
    assert "<b>" not in page
    assert page.count("&lt;b&gt;${x}&lt;/b&gt; &amp;") == 7
    assert "&lt;b&gt;" in macro("ui.html", "hint", TEXT)


def test_a_value_that_lacks_is_no_empty_place() -> None:
    with pytest.raises(UndefinedError, match="no attribute 'version'"):
        render("api.html", schema={"info": {"title": "x"}}, arguments=[], example="")
