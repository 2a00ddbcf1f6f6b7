"""Summarise pydantic's validation errors in one line that names the key."""

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from llmdiff.checks.bounds import short

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

# pydantic takes tens of milliseconds to import, so it is imported only to validate settings.

_NAME = re.compile(r"[\w.-]{1,200}")


def what_is_wrong(error: "ValidationError", model: "type[BaseModel]") -> str:
    """Return the first error: unknown keys come first, as a misspelt key is also missing elsewhere."""
    found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")[0]
    *outer, key = found["loc"] or ("",)
    name = repr(".".join(str(part)[:80] for part in found["loc"]))[1:-1]  # in one line
    if found["type"] == "extra_forbidden" and not _NAME.fullmatch(name):
        # The file may be another one, passed by mistake: its content stays out of the message.
        return f"a key is no name, known are {', '.join(_inner(model, outer).model_fields)}: is it the right file?"
    if found["type"] == "extra_forbidden":
        known = list(_inner(model, outer).model_fields)
        near = get_close_matches(str(key)[:80], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {name!r}, known are {', '.join(known)}{hint}"
    if found["type"] == "missing":
        return f"{name} is missing: set it"
    reason = found["msg"].removeprefix("Value error, ")
    return f"{name} is {short(found['input'])}: {reason}" if name else reason


def _inner(model: Any, outer: "list[int | str]") -> Any:
    """Return the model that holds the key, also inside dictionaries of models."""
    for part in outer:
        field = model.model_fields.get(part)
        if field is not None:
            inner = [
                one for one in (field.annotation, *get_args(field.annotation)) if hasattr(one, "model_fields")
            ]
            model = inner[0] if inner else model
    return model
