"""Settings with validated fields: one-line errors that name the field, and fields as keyword arguments."""

import inspect
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError

# Importing pydantic takes tens of milliseconds: modules that a command imports at its start must not import this.

_NAME = re.compile(r"[\w.-]{1,200}")
_Kind = TypeVar("_Kind")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Settings(BaseModel):
    """Base of settings classes: immutable, without conversions between types.

    Raises:
        ConfigError: a field is unknown, missing, of another type or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ConfigError(what_is_wrong(error, type(self))) from error

        # As a field of another model, pydantic validates without __init__, so that errors have the whole path.
        __init__.__pydantic_base_init__ = True


def settings_from(kind: type[_Kind], given: _Kind | None, fields: Mapping[str, Any]) -> _Kind:
    """Return the settings of a call, which passes an object or its fields as keyword arguments.

    Raises:
        ConfigError: both are passed, or a field is invalid.
    """
    if given is None:
        return kind(**fields)
    if fields:
        raise ConfigError(
            f"{', '.join(fields)}: given together with {kind.__name__}(...), expected one of them: put it into the "
            "object"
        )
    return given


def keywords_of(kind: type) -> Callable[[_Function], _Function]:
    """Return a decorator that shows the fields of `kind` in the signature of a function with `**fields`."""

    def decorate(function: _Function) -> _Function:
        own = inspect.signature(function)
        shown = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        fields = inspect.signature(kind).parameters
        shown += [
            one.replace(kind=one.KEYWORD_ONLY) for name, one in fields.items() if name not in own.parameters
        ]
        function.__dict__["__signature__"] = own.replace(parameters=shown)
        return function

    return decorate


def what_is_wrong(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first error; unknown keys come first, since a misspelt key also causes a missing one."""
    found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")[0]
    *outer, key = found["loc"] or ("",)
    name = repr(".".join(str(part)[:80] for part in found["loc"]))[1:-1]  # in one line
    if found["type"] == "extra_forbidden" and not _NAME.fullmatch(name):
        # It may be the wrong file: leave its content out of the message.
        return f"a key is no name, known are {', '.join(_inner(model, outer).model_fields)}: is it the right file?"
    if found["type"] == "extra_forbidden":
        known = list(_inner(model, outer).model_fields)
        near = get_close_matches(str(key)[:80], known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"unknown key {name!r}{hint}, known are {', '.join(known)}"
    if found["type"] == "missing":
        return f"{name} is missing: set it"
    reason = found["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ", 1)
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
