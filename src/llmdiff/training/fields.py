"""Types of a training configuration's values, with ranges that are checked when the file is read."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from llmdiff.checks.bounds import (
    COUNT,
    SEED,
    SIDE_PX,
    TRAINING_STEPS,
    TRAINING_STEPS_OR_NONE,
    Bounds,
)
from llmdiff.files import is_blank


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _place(value: Any) -> Any:
    # Check the type first: printing a list with YAML aliases may take forever.
    text = str(value) if isinstance(value, str | Path) else ""
    if is_blank(text) or len(text) > 4096 or not text.isprintable():
        raise ValueError("expected the path of a folder")
    return value


def within(bounds: Bounds) -> Any:
    """Return a field whose value lies within the bounds."""
    return Field(ge=bounds.low, le=bounds.high)


_NUMBER = BeforeValidator(_no_truth)  # pydantic accepts `true` as a number
Whole = Annotated[int, _NUMBER]
Real = Annotated[float, _NUMBER]
Steps = Annotated[Whole, within(TRAINING_STEPS)]
StepsOrNone = Annotated[Whole, within(TRAINING_STEPS_OR_NONE)]
Count = Annotated[Whole, within(COUNT)]
Side = Annotated[Whole, within(SIDE_PX)]
Seed = Annotated[Whole, within(SEED)]
Share = Annotated[Real, Field(ge=0, le=1)]
Rate = Annotated[Real, Field(gt=0, le=10)]
Positive = Annotated[Real, Field(gt=0, le=1e12)]
# Name of a model, data set or column, without control characters.
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
Place = Annotated[Path, BeforeValidator(_place)]


class Section(BaseModel):
    """A section of a configuration: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
