"""Settings of a text encoding."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from llmdiff.checks.validation import Settings
from llmdiff.language.blocks import Lone
from llmdiff.language.routing import RoutingForm
from llmdiff.language.tokens import checked_template

Encoding = Literal["guided", "paper"]
# Far above every existing model, and small enough for any machine.
_MAX_TOKENS, _MAX_TEMPLATE, _MAX_GROUPS = 2**20, 100_000, 4096


class EncodingSettings(Settings):
    """How an LLM's blocks become a text encoding, see `ContextEncoding`.

    Fields:
        encoding: the sum over blocks; None if the states come from another source.
        lone: the tokens that a lone token attends to: only itself, or BOS too.
        template: text around the prompt that contains `{prompt}`, see `DecoderLLM.tokenize`.
        max_length: longest prompt in tokens; longer ones are cut with a warning.
        clip: largest norm of an update in scales; longer updates are shortened. `math.inf` clips nothing.
        routing: number of groups of the denoiser's attention layers with separate gains, up to one for each layer;
            1: the same gains for all layers.
        routing_form: how a group's gains differ from the shared ones, see `RoutedGains`.
    """

    encoding: Encoding | None = "guided"
    lone: Lone = "token+bos"
    template: Annotated[str, Field(max_length=_MAX_TEMPLATE), AfterValidator(checked_template)] | None = None
    max_length: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 512
    # NaN is not above 0.
    clip: Annotated[float, Field(gt=0)] = 3.0
    routing: Annotated[int, Field(ge=1, le=_MAX_GROUPS)] = 1
    routing_form: RoutingForm = "signed"
