"""The tables of the families: every check is a test of just those families, and the docs hold them."""

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from docs.families_table import CHECKS, FamilyCheck, parts
from docs.written import on_page

from llmdiff.adapter import FAMILIES

EVERY = {family.name for family in FAMILIES}
# Fixtures that come from `pipe`: Stable Diffusion and SDXL, or every family where a module says so.
FROM_PIPE = {"pipe", "attached", "adapter", "loud_adapter"}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"checked_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def covered_families(home: ModuleType, test: Any) -> set[str]:
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize" and "family" in mark.args[0]:
            cases = mark.args[1]
            return {case if isinstance(case, str) else case[mark.args[0].index("family")] for case in cases}
    assert FROM_PIPE & set(inspect.signature(test).parameters)
    return EVERY if hasattr(home, "pipe") else {"sd", "sdxl"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.title)
def test_every_check_is_a_test_of_its_families(check: FamilyCheck) -> None:
    home = module(check.module)
    assert covered_families(home, getattr(home, check.test)) == set(check.families)


def test_docs_hold_the_tables() -> None:
    for page, tables in parts().items():
        for name, table in tables.items():
            assert on_page(page, name) == table, "run python tests/docs/families_table.py"
