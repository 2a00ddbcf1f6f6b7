"""HTML from jinja2 templates, which lie in the folder `templates` of either package and escape every value."""

import json
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from llmdiff.evaluation.tables import percent


def render(template: str, *, package: str = "llmdiff", **values: Any) -> str:
    """Return a page or a part of one. A package's templates may extend and import those of `llmdiff`."""
    return _environment(package).get_template(template).render(values)


def macro(template: str, name: str, *values: Any) -> str:
    """Return what one macro of a template of `llmdiff` makes of these values."""
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
    # Unlike jinja2's `tojson`, for people to read; escaped like every text.
    environment.filters |= {"dump": lambda value, indent=None: json.dumps(value, indent=indent)}
    environment.filters |= {"percent": percent, "repr": repr}
    return environment
