"""Settings of a new adapter, and of a pipeline's control by one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llmdiff.adapter.gain_settings import check_block_gains, check_layer_scale
from llmdiff.adapter.refiner import LAYERS, wide
from llmdiff.checks.bounds import SCALE, short
from llmdiff.checks.validation import settings_from
from llmdiff.errors import ConfigError
from llmdiff.language.settings import EncodingSettings

if TYPE_CHECKING:
    from llmdiff.language.rewording import Rewording

# Far above every existing model, and small enough for any machine.
_MAX_WIDTH, MAX_REFINER_LAYERS = 2**20, 256

Width = Annotated[int, Field(ge=1, le=_MAX_WIDTH)]


class AdapterSettings(EncodingSettings):
    """The choices for a new adapter; everything else follows from the LLM and the pipeline.

    Fields:
        scale: recommended scale, the default of `attach`; above 0 and at most 1.
        refiner_layers: blocks of the `TokenRefiner`; 0 omits it, as in the paper.
        refiner_width: their width; None: the LLM's, at most 1,024.
    """

    scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    refiner_layers: Annotated[int, Field(ge=0, le=MAX_REFINER_LAYERS)] = LAYERS
    refiner_width: Width | None = None

    def fields_for(self, hidden_size: int) -> dict[str, Any]:
        """Return the fields of a new adapter for an LLM of this width, with the refiner's width as a number."""
        found = self.model_dump(include=set(AdapterSettings.model_fields))
        return found | {"refiner_width": self.refiner_width or wide(hidden_size)}


@dataclass(frozen=True, kw_only=True)
class Control:
    """How an attached LLM controls a pipeline, see `attach`.

    Fields:
        scale: from 0, the base's text encoder alone, to 1, the LLM alone; None: the adapter's own scale.
        keep_base_text: let the pretrained attention branch attend to the base's own text states too.
        weighted: read `(word:1.3)` in a prompt as a weight.
        strict: refuse an LLM of another name than the adapter's; False warns instead.
        rewording: a closed LLM that rewords every prompt before it is encoded; negative prompts are not reworded.
        block_gains: factors of what blocks of the LLM add to the encoding, by their numbers from 0; others keep 1.
        layer_scale: scales of attention layers in place of `scale`, by their names with wildcards; the last that
            matches counts. A pooled text vector follows `scale`.

    Raises:
        ConfigError: a number is out of range.
    """

    scale: float | None = None
    keep_base_text: bool = False
    weighted: bool = False
    strict: bool = True
    rewording: "Rewording | None" = None
    block_gains: Mapping[int, float] | None = None
    layer_scale: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_block_gains(self.block_gains or {})
        check_layer_scale(self.layer_scale or {})
        if self.scale == 0 and self.layer_scale:
            raise ConfigError(
                "layer_scale is given and scale is 0, which leaves the base as it is: choose a scale above 0 and give "
                'the other layers 0, as in {"*": 0, "mid_block.*": 1}'
            )
        if self.scale is not None and not SCALE.holds(self.scale):
            raise ConfigError(
                f"scale is {short(self.scale)}, expected a number from 0 (the base pipeline) to 1 (the LLM)"
            )

    @property
    def reads_base(self) -> bool:
        """Return whether the base's text encoder is read too; `scale` is a number."""
        assert self.scale is not None
        return self.keep_base_text or min(self.scale, *(self.layer_scale or {}).values(), 1.0) < 1

    @property
    def base(self) -> "Control":
        """Return the control that leaves the pipeline to its base's text encoder."""
        return replace(self, scale=0.0, layer_scale=None)


def as_control(given: Control | float | None, fields: Mapping[str, Any]) -> Control:
    """Return the control that a call passes: an object, its scale alone, or its fields as keyword arguments.

    Raises:
        ConfigError: an object and fields are given, or the scale is out of range.
    """
    if given is None or isinstance(given, Control):
        return settings_from(Control, given, fields)
    return Control(**{"scale": given, **fields})
