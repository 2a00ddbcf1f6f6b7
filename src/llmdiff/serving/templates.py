"""Render the jinja2 templates in the folder `templates` of either package, with every value escaped."""

import json
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from llmdiff.evaluation.tables import percent


def render(template: str, *, package: str = "llmdiff", **values: Any) -> str:
    """Return a page or a part of one. A package's templates may extend and import those of `llmdiff`."""
    return _environment(package).get_template(template).render(values)


def macro(template: str, name: str, *values: Any) -> str:
    """Render one macro of a template of `llmdiff` with these values."""
    return str(getattr(_environment("llmdiff").get_template(template).module, name)(*values))


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("llmdiff")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Unlike jinja2's `tojson`, readable; escaped like every text.
    environment.filters |= {"dump": lambda value, indent=None: json.dumps(value, indent=indent)}
    environment.filters |= {"percent": percent, "repr": repr}
    return environment
