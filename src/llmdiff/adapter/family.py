"""What is known of a family of diffusers pipelines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """The properties of one family of pipelines; what its pipeline classes add, their `PromptContract` says.

    Fields:
        name: the name that adapters store.
        title: the family's name for people.
        denoisers: class names of its U-Nets or transformers; subclasses of them count too.
        config: what the denoiser's config holds in this family, by key.
        objective: the training target. "scheduler": the `prediction_type` (epsilon, v_prediction or sample) of the
            pipeline's scheduler; "flow": flow matching; None: the family is distilled from a teacher, whose objective
            `llmdiff train` does not have.
        latents: how the denoiser takes latents: as "pictures" (B, C, h, w), as "videos" of one frame (B, C, 1, h, w),
            or as rows of "patches" (B, h w / p^2, C p^2), where p is `latent_patch`.
        time: how the denoiser counts time: in the scheduler's "steps"; as the share of "noise", from 0 to 1; or as the
            share of the "picture", 1 - that of noise: it then predicts the picture minus the noise.
        text_width: the key of the denoiser's config with the width of its text states.
        pooled_width: the key for the width of the pooled vector; None if the denoiser takes none.
        text_channel: how the attention layers read the text. "states": cross-attention, which gets the text states
            unchanged. "projected": cross-attention to text states that the denoiser projects first. "joint": text and
            image share their attention.
        carrier: the denoiser's argument that carries c to the layers, if the text is projected: a mask, or keyword
            arguments of the layers. None: no argument reaches every layer, so `SplitText` hands c to them.
        text_argument: the denoiser's argument for the text states.
        text_projections: modules of the denoiser that project text states before the attention layers.
        text_blocks: lists of blocks of the denoiser that process the projected text alone, without the time step.
        branches: names (with wildcards) of the layers that get a new branch, where their kind does not tell.
        single_stream: names (with wildcards) of joint layers that read text and image as one stream.
        text_first: whether joint attention has the text's rows before the image's.
        text_rows_multiple: the number that a single stream pads the rows of each text to a multiple of.
        mixing: where a scale below 1 mixes LLM and base: in the "attention", or their "prediction", for denoisers
            that give text rows a position or let them attend to each other, or that read the base's padding by a mask
            of their own; these take twice the time.
        masks_padding: whether the denoiser gets a mask of its text, or no padding at all, and so leaves padding out by
            itself. Else joint attention leaves it out by a bias.
        base_reads_padding: whether the base reads the padding of its text, whatever mask `encode_prompt` returns.
        ragged: whether latents and text states are lists of tensors, one for each prompt.
        side_divisor_px: the divisor that its pipelines require of height and width, besides the VAE's factor.
        guided_by: what says how much the negative prompt counts: the argument "guidance_scale", the argument
            "true_cfg_scale", or the pipeline's "guider".
        guided_above: the value of that argument above which the negative prompt is read.
        latent_patch: the side of a patch in latents: a number, or a key of the denoiser's config. 1 for PixArt,
            whose pipelines draw the nearest size that fits and resize it to the requested one.
    """

    name: str
    title: str
    denoisers: tuple[str, ...]
    config: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    objective: Literal["scheduler", "flow"] | None = "flow"
    latents: Literal["pictures", "videos", "patches"] = "pictures"
    time: Literal["steps", "noise", "picture"] = "steps"
    text_width: str
    pooled_width: str | None = None
    text_channel: Literal["states", "projected", "joint"] = "states"
    carrier: str | None = None
    text_argument: str = "encoder_hidden_states"
    text_projections: tuple[str, ...] = ()
    text_blocks: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    single_stream: tuple[str, ...] = ()
    text_first: bool = True
    text_rows_multiple: int = 1
    mixing: Literal["attention", "prediction"] = "attention"
    masks_padding: bool = False
    base_reads_padding: bool = False
    ragged: bool = False
    guided_by: Literal["guidance_scale", "true_cfg_scale", "guider"] = "guidance_scale"
    guided_above: float = 1.0
    side_divisor_px: int = 1
    latent_patch: int | Literal["patch_size"] = 1

    def is_of_class(self, denoiser: nn.Module) -> bool:
        """Return whether the denoiser's class is one of the family's."""
        return bool({parent.__name__ for parent in type(denoiser).__mro__} & set(self.denoisers))

    def unlike(self, denoiser: nn.Module) -> list[str]:
        """Return what the denoiser's config has that the family has not; empty if it is one of the family."""
        config: Any = denoiser.config
        return [
            f"{key}={config.get(key)!r}"
            for key, values in self.config.items()
            if config.get(key) not in values
        ]

    def text_modules(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return the modules that read nothing but the text, by name; a ControlNet may have some of them only."""
        blocks = [
            f"{name}.{number}"
            for name in self.text_blocks
            for number, _ in enumerate(submodule(denoiser, name) or ())
        ]
        found = {name: submodule(denoiser, name) for name in (*self.text_projections, *blocks)}
        return {name: module for name, module in found.items() if module is not None}

    def patch_of(self, denoiser: nn.Module) -> int:
        """Return p, the side of a patch. Units: latents."""
        config: Any = denoiser.config
        return int(self.latent_patch if isinstance(self.latent_patch, int) else config[self.latent_patch])


def submodule(module: Any, name: str) -> Any:
    """Return a part of a module by its name; None if it has no such part."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module
