"""Validate an adapter's config.json: the type and range of every field, before anything is built from it."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from torch import nn

from llmdiff.adapter.families import FAMILIES
from llmdiff.adapter.settings import MAX_REFINER_LAYERS, AdapterSettings, Width
from llmdiff.checks.validation import Settings
from llmdiff.errors import CorruptWeightsError

# Far above every existing model, and small enough for any machine.
_MAX_BLOCKS, _MAX_LAYERS = 10_000, 4096


def _layer_name(name: str) -> str:
    # Submodules are attributes of their parent and must not hide its own attributes.
    if hasattr(nn.ModuleDict(), name.replace(".", "_")):
        raise ValueError("no layer can have this name")
    return name


def _known_family(name: str) -> str:
    known = [row.name for row in FAMILIES]
    if name not in known:
        raise ValueError(f"expected one of {', '.join(map(repr, known))}")
    return name


# A folder or a Hub id; characters that are invalid in both are refused before the name is used as a path.
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
LayerName = Annotated[
    str, Field(min_length=1, max_length=500, pattern=r"^[A-Za-z0-9_.]+$"), AfterValidator(_layer_name)
]


class LayerConfig(Settings):
    """One attention layer, see `layers.layer_table`."""

    query_dim: Width
    inner_dim: Width
    heads: Width
    out_dim: Width
    query_bias: bool
    out_bias: bool

    @model_validator(mode="after")
    def _heads_are_alike(self) -> Self:
        if self.inner_dim % self.heads:
            raise ValueError(f"inner_dim {self.inner_dim} is no multiple of heads {self.heads}")
        return self


class SavedConfig(AdapterSettings):
    """The arguments of `LLMDiffAdapter`.

    Files of earlier versions: those without `refiner_layers` have no refiner; those without `refiner_width` have one of
    `refiner.narrow` blocks.
    """

    llm_id: Name
    num_blocks: Annotated[int, Field(ge=0, le=_MAX_BLOCKS)]
    hidden_size: Width
    family: Annotated[str, AfterValidator(_known_family)]
    base_model_id: Name
    text_width: Width
    pooled_width: Width | None
    cross_attention: Annotated[dict[LayerName, LayerConfig], Field(max_length=_MAX_LAYERS)]
    refiner_layers: Annotated[int, Field(ge=0, le=MAX_REFINER_LAYERS)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # States that come from no LLM have no blocks.
        if self.encoding is not None and not self.num_blocks:
            raise ValueError("num_blocks is 0, expected at least 1 where there is an encoding")
        if self.routing > max(1, len(self.cross_attention)):
            raise ValueError(
                f"routing is {self.routing}, expected at most {len(self.cross_attention)}, the number of attention "
                "layers that read the text"
            )
        if len({name.replace(".", "_") for name in self.cross_attention}) < len(self.cross_attention):
            raise ValueError("cross_attention has two layers whose names differ in dots only")
        return self


def check_saved(config: Mapping[str, Any], names: Collection[str]) -> None:
    """Check a config and that the weights' names fit its numbers, before modules are built.

    Raises:
        ConfigError: a field is unknown, missing or out of range.
        CorruptWeightsError: the weights belong to another adapter.
    """
    SavedConfig(**config)
    asked = {
        "refiner_layers": int(config.get("refiner_layers", 0)),
        "cross_attention": len(config["cross_attention"]),
    }
    found = {
        "refiner_layers": len({name.split(".")[2] for name in names if name.startswith("refiner.blocks.")}),
        "cross_attention": len({name.split(".")[1] for name in names if name.startswith("branches.")}),
    }
    for key, count in asked.items():
        if found[key] != count:
            raise CorruptWeightsError(
                f"config.json has {count} {key}, the weights have {found[key]}: config and weights are of different "
                "adapters; save or download it again"
            )
