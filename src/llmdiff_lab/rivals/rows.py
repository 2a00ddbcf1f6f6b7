"""The rows of `rivals.yaml`: the reading and the settings of each rival."""

from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from llmdiff.checks.validation import Settings, what_is_wrong
from llmdiff.errors import ConfigError
from llmdiff.language.blocks import Lone
from llmdiff.language.routing import RoutingForm
from llmdiff.training.yaml_text import parse_yaml

Group = Literal["base", "encoders", "layers", "published", "ours", "parts removed"]
Side = Literal["denoiser", "llm"]


class RivalRow(Settings):
    """One rival. Fields that its reading does not use are errors.

    Fields:
        title: a short description. group: its group in reports.
        reading: a name in `readings.READINGS`.
        refiner_layers: number of blocks of our adapter's refiner.
        refiner_width: "wide" blocks are as wide as the reader, "narrow" ones as the smaller of the reader and the
            denoiser's text states; at most 1,024.
        routing: number of groups of attention layers with separate states; 0: one for each layer.
        routing_form: form of `RoutedGains`.
        lora: models with trained LoRA: "denoiser", "llm".
        lone: tokens that a lone token attends to; None: the benchmark's setting.
        branches: branches of our adapter that attend.
        learn_gains, noise: train gains, and add noise in training.
    """

    title: Annotated[str, Field(min_length=1, max_length=200)]
    group: Group
    reading: str
    refiner_layers: Annotated[int, Field(ge=0, le=64)] = 0
    refiner_width: Literal["wide", "narrow"] = "narrow"
    routing: Annotated[int, Field(ge=0, le=4096)] = 1
    routing_form: RoutingForm = "signed"
    lora: list[Side] = Field(default_factory=list)
    lone: Lone | None = None
    branches: Literal["both", "pretrained", "new"] = "both"
    learn_gains: bool = True
    noise: bool = True

    @property
    def chosen(self) -> set[str]:
        """Return the fields that differ from their defaults, without those that every row has."""
        return {
            name
            for name, field in type(self).model_fields.items()
            if not field.is_required() and getattr(self, name) != field.get_default(call_default_factory=True)
        }


@cache
def rival_rows() -> dict[str, RivalRow]:
    """Return all rows by name, in the file's order.

    Raises:
        ConfigError: the file is damaged.
    """
    text = resources.files(__package__).joinpath("rivals.yaml").read_text(encoding="utf-8")
    found = parse_yaml("rivals.yaml is not YAML", text)
    rows: dict[str, RivalRow] = {}
    for name, fields in found.items():
        try:
            rows[name] = RivalRow.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"rivals.yaml, {name}: {what_is_wrong(error, RivalRow)}") from error
    return rows
