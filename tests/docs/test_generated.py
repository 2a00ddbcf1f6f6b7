"""The pages made from code and records, and how docstrings are read; the build itself is `make docs`."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from docs.pages import PAGES, ROOT
from llmdiff.cli.main import app
from llmdiff.training.config import TrainConfig
from llmdiff_lab.cli.main import app as laboratory


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "extensions" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# In the order of their imports.
extension("page_text")
inside, claims, docstrings = extension("inside_pages"), extension("claims"), extension("docstrings")
reference, results = extension("reference_pages"), extension("result_pages")


def test_sections_become_fields_and_equations_code() -> None:
    lines = [
        "Return c.",
        "",
        "The sum:",
        "",
        "    c = x_0 + a*b",
        "",
        "Shapes:",
        "    x0: (B, T, D), what",
        "        enters; a, b: (L,).",
        "Raises:",
        "    PromptError: `text` is blank.",
        "    ConfigError: a | b.",
        "",
        "Source: Dong et al. 2024,",
        "    equation 3.",
    ]
    assert [line for line in docstrings.as_rst(lines) if line] == [
        "Return c.",
        "The sum:",
        ".. code-block:: text",
        "    c = x_0 + a*b",
        ":Shapes:",
        "    ``x0``: (B, T, D), what enters; a, b: (L,).",
        ":Raises:",
        "    - ``PromptError``: ``text`` is blank.",
        r"    - ``ConfigError``: a \| b.",
        ":Source: Dong et al. 2024, equation 3.",
    ]


def test_every_option_of_every_verb_is_in_the_reference() -> None:
    page = reference.command_line()

    def options(command: Any) -> set[str]:
        inner = getattr(command, "commands", {}).values()
        own = {option for one in command.params if one.param_type_name == "option" for option in one.opts}
        return own.union(*map(options, inner))

    for program, application in {"llmdiff": app, "llmdiff-lab": laboratory}.items():
        verbs = typer.main.get_command(application).commands
        assert {f"## `{program} {verb}`" for verb in verbs} <= set(page.splitlines())
        assert all(f"`{option}`" in page for verb in verbs.values() for option in options(verb))


def test_every_module_but_the_command_line_is_in_the_reference() -> None:
    pages = "".join(map(reference.api_page, reference.packages()))
    source = ROOT / "src"
    for path in source.rglob("*.py"):
        module = ".".join(path.relative_to(source).with_suffix("").parts)
        if path.parent.name != "cli" and not path.stem.startswith("__"):
            assert f".. automodule:: {module}\n   :members:" in pages


def test_every_key_of_the_configuration_is_in_the_reference() -> None:
    page = reference.configuration()
    for name, field in TrainConfig.model_fields.items():
        assert f"`{name}`" in page
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"| `{key}` |" in page
    assert "| `batch_size` | needed | a whole number, at least 1, at most 1,000,000 |" in page
    assert '| `lr_schedule` | `"cosine"` | `constant`, `cosine`, `linear`, `trapezoid` |' in page


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_every_record_has_its_page(path: Path) -> None:
    page, record = results.result_page(path), json.loads(path.read_text())
    assert page.startswith(f"# {results.title_of(path)}\n")
    assert (results.ABOUT_FIRST_WORLD in page) == (path.stem in results.FIRST_WORLD)
    if "systems" in record:
        for system in record["systems"].values():
            exact = system["overall"] if "overall" in system else system["metrics"]["scenes"]
            assert f"{100 * exact['mean']:.1f} [" in page


def test_a_record_of_another_shape_has_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text(
        json.dumps(
            {"command": "x", "one": 0.123456, "rows": [{"a": 1, "b": 2.5}], "deep": {"c": {"d": {"e": 1}}}}
        )
    )
    page = results.result_page(path)
    for part in (
        "```text\nx\n```",
        "| one | 0.1235 |",
        "| | a | b |",
        "| 0 | 1 | 2.5 |",
        "### c",
        "| d | 1 |",
    ):
        assert part in page


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "explanation").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    made = {"command-line.md", "configuration.md", "findings.inc", "claims.inc"}
    made |= {f"results-{path.stem}.md" for path in (ROOT / "docs" / "results").glob("*.json")}
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target) or not path:
            continue
        place = page.parent / path
        assert place.exists() or (place.parent.name == "generated" and place.name in made), (
            f"{page}: {target}"
        )
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page}: {target}"


def test_the_page_of_speed_is_the_text_that_was_written_beside_its_record(tmp_path: Path) -> None:
    (tmp_path / "performance.json").write_text(
        json.dumps({"command": "x", "claims": {"encode": {"ours": 1}}})
    )
    (tmp_path / "performance.md").write_text("| what |\n|---|\n| encode |\n\n![growth](scaling.png)\n")
    page = results.result_page(tmp_path / "performance.json")
    assert page.startswith(
        "# Speed and memory\n\n| what |\n|---|\n| encode |\n\n![growth](../results/scaling.png)\n"
    )
    assert page.endswith("[`docs/results/performance.json`](../results/performance.json).\n")
