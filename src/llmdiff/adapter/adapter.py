"""LLMDiffAdapter: all trained parameters, from the text encoding to the second attention branches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.processors import CrossAttentionBranch
from llmdiff.adapter.refiner import TokenRefiner, narrow
from llmdiff.adapter.saved_config import SavedConfig, check_saved
from llmdiff.adapter.settings import AdapterSettings
from llmdiff.adapter.starting import init_from_base
from llmdiff.adapter.storage import ReadTensors, load_adapter_files, save_adapter_files
from llmdiff.adapter.true_weights import place_of
from llmdiff.checks.validation import keywords_of, settings_from
from llmdiff.errors import AdapterMismatchError, ConfigError
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.routing import RoutingForm
from llmdiff.types import TextEncoding

# Encoded by the base's text encoder when an adapter is created, to measure the size of its text states.
_SAMPLE_PROMPTS = ("a photo of a cat", "two red apples beside a blue cup", "a house by the sea at night", "")


class LLMDiffAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """The adapter between an LLM and one frozen denoiser.

    Modules:
        context: the weighted sum over the LLM's blocks; None when the states come from something else.
        norm, phi: c => norm(c) => phi(norm(c)), of the width that the denoiser expects.
        refiner: norm(c) => refined states that replace norm(c); None with `refiner_layers=0`, as in the paper.
        pooled: the last real token of norm(c) => the pooled vector; None if the denoiser takes none.
        branches: the new half of every attention layer that reads text, in `cross_attention`'s order.

    Its arguments are the fields of `SavedConfig`: those of `AdapterSettings`, and the sizes of LLM and denoiser.

    Raises:
        ConfigError: an argument is out of range.

    Source: Dong et al. 2024 (arXiv 2502.04412); LayerNorm on c is ours, see `ContextEncoding`.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    @keywords_of(SavedConfig)
    def __init__(self, **config: Any) -> None:
        saved = SavedConfig(**config)
        super().__init__()
        hidden_size, text_width = saved.hidden_size, saved.text_width
        self.context: ContextEncoding | None = None
        if saved.encoding is not None:
            self.context = ContextEncoding(saved.num_blocks, hidden_size, saved)
        self.norm = nn.LayerNorm(hidden_size)
        self.refiner: TokenRefiner | None = None
        if saved.refiner_layers:
            # Files of earlier versions have no width: it was this one.
            width = saved.refiner_width or narrow(hidden_size, text_width)
            self.register_to_config(refiner_width=width)
            self.refiner = TokenRefiner(hidden_size, layers=saved.refiner_layers, width=width)
        self.phi = nn.Linear(hidden_size, text_width)
        self.pooled = None if saved.pooled_width is None else nn.Linear(hidden_size, saved.pooled_width)
        self.groups = saved.routing
        # A dot separates modules in a state dict, so layer names carry underscores here.
        self.branches = nn.ModuleDict(
            {
                name.replace(".", "_"): CrossAttentionBranch(hidden_size, **dict(row))
                for name, row in saved.cross_attention.items()
            }
        )

    def branch(self, layer: str) -> CrossAttentionBranch:
        """Return the branch of the attention layer with this module name."""
        return cast(CrossAttentionBranch, self.branches[layer.replace(".", "_")])

    def condition(self, encoding: TextEncoding) -> tuple[Tensor, Tensor | None]:
        """Return the `encoder_hidden_states` for diffusers, and the pooled vector or None.

        Shapes:
            encoding.states (B, T, D) => (B, T, W + D), [phi(norm(c)) ; norm(c)], padding rows exactly 0;
            with routing (B, T, d, D) => (B, T, d (W + D)), phi(norm(c_1)) to phi(norm(c_d)), then all norm(c_i);
            pooled (B, pooled width), from the last real token, with routing of the mean over groups.

        Raises:
            AdapterMismatchError: the encoding's width or number of groups differs from the adapter's.
        """
        hidden_size = self.norm.normalized_shape[0]
        if encoding.states.shape[-1] != hidden_size:
            raise AdapterMismatchError(
                f"encoding has width {encoding.states.shape[-1]}, the adapter was made for {hidden_size}: "
                "use the LLM that the adapter was trained with"
            )
        found = 1 if encoding.states.ndim == 3 else encoding.states.shape[2]
        if found != self.groups:
            raise AdapterMismatchError(
                f"encoding has {found} groups of attention layers, the adapter was made for {self.groups}: encode with "
                "the adapter's own context"
            )
        weight = self.norm.weight
        # Autograd rejects inference tensors; a clone is a normal tensor.
        states = encoding.states.clone() if encoding.states.is_inference() else encoding.states
        states = self.norm(states.to(device=weight.device, dtype=weight.dtype))
        mask = encoding.token_mask.to(weight.device)
        if self.refiner is not None:
            states = self._refined(states, mask)
        projected, own = self.phi(states), states
        if self.groups > 1:
            projected, own, states = projected.flatten(2), states.flatten(2), states.mean(dim=2)
        # Mask after the projections: the biases of LayerNorm and phi would fill padding rows.
        both = torch.cat([projected, own], dim=-1).masked_fill(~mask[..., None], 0)
        if self.pooled is None:
            return both, None
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, 0).amax(dim=1)
        return both, self.pooled(states[torch.arange(len(last), device=last.device), last])

    def _refined(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the refined states, every group's by itself through the one refiner that all share."""
        assert self.refiner is not None
        if self.groups == 1:
            return cast(Tensor, self.refiner(states, mask))
        flat = states.transpose(1, 2).flatten(0, 1)  # (B * d, T, D)
        refined: Tensor = self.refiner(flat, mask.repeat_interleave(self.groups, dim=0))
        return refined.view(len(states), self.groups, *refined.shape[1:]).transpose(1, 2)

    @classmethod
    @keywords_of(AdapterSettings)
    def create(
        cls,
        pipe: Any,
        *,
        llm_id: str,
        hidden_size: int,
        num_blocks: int,
        settings: AdapterSettings | None = None,
        base_model_id: str | None = None,
        sample_prompts: Sequence[str] = _SAMPLE_PROMPTS,
        **fields: Any,
    ) -> Self:
        """Return an untrained adapter for this pipeline, in float32 on the denoiser's device.

        Pass the `settings`, or fields of `AdapterSettings` as keyword arguments.

        New query and output projections start as copies of the pretrained ones. phi, keys and values are
        random, scaled so that text states, keys and values have the same size as those of the base's text encoder for
        `sample_prompts` (size 1 if the pipeline has no text encoder). Gates start at a = 1, b = 0. The refiner
        starts as the identity; `refiner_layers=0` omits it, as in the paper.

        Raises:
            UnsupportedPipelineError: the pipeline belongs to no known family.
        """
        family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
        if base_model_id is None:
            base_model_id = str(getattr(pipe, "name_or_path", None) or pipe.config.get("_name_or_path") or "")
        make: Any = cls  # diffusers' config decorator hides the signature
        adapter: Self = make(
            llm_id=llm_id,
            num_blocks=num_blocks,
            hidden_size=hidden_size,
            family=family.name,
            base_model_id=base_model_id,
            text_width=families.text_width(denoiser, family),
            pooled_width=families.pooled_width(denoiser, family, pipe),
            cross_attention=layers.layer_table(denoiser),
            **settings_from(AdapterSettings, settings, fields).fields_for(hidden_size),
        )
        init_from_base(adapter, pipe, family, denoiser, sample_prompts)
        for module in adapter.children():
            module.to(place_of(denoiser, pipe))
        return adapter

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make an adapter of the same shapes."""
        return {name: value for name, value in self.config.items() if not name.startswith("_")}

    def with_routing(self, groups: int, form: RoutingForm = "signed") -> Self:
        """Return a copy in which groups of attention layers have gains of their own, at first the shared ones.

        The copy draws the same pictures until it is trained. An adapter with as many groups is returned as it is.

        Raises:
            ConfigError: the adapter has another number of groups already, or sums no blocks.
        """
        if groups == self.groups:
            return self
        if self.context is None or self.groups > 1:
            found = "it sums no blocks" if self.context is None else f"it has {self.groups} groups"
            raise ConfigError(f"routing is {groups}, but the adapter cannot be given groups: {found}")
        make: Any = type(self)
        with torch.device(self.device):
            twin: Self = make(**self.arguments | {"routing": groups, "routing_form": form})
        twin.load_state_dict({**twin.state_dict(), **self.state_dict()})
        return twin

    def save_pretrained(  # type: ignore[override, unused-ignore]
        self, save_directory: str | Path, *, dtype: torch.dtype | None = None, card: str | None = None
    ) -> None:
        """Write config.json, the weights as safetensors and a SHA-256 manifest.

        `dtype` is the dtype of the stored weights; the context encoding's few numbers stay in float32.
        `card` is written as README.md, unless the folder already has one.

        Raises:
            OutputError: the folder cannot be written; no partial files are left in it.
        """
        tensors = {}
        for name, tensor in self.state_dict().items():
            keep = dtype is None or name.startswith("context.") or not tensor.is_floating_point()
            tensors[name] = tensor.detach().to("cpu", None if keep else dtype).contiguous()
        config = {"_class_name": type(self).__name__, **self.arguments}
        save_adapter_files(Path(save_directory), config, tensors, card=card)

    @classmethod
    def from_pretrained(  # type: ignore[override, unused-ignore]
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Self:
        """Return a saved adapter, from a folder or a Hub id, in eval mode; `dtype=None` keeps the stored one.

        Raises:
            AdapterNotFoundError: neither a folder nor an available Hub id.
            CorruptWeightsError: a file is missing, truncated or differs from its recorded SHA-256, or a
                tensor is missing, has another shape or holds values that are not finite.
            ConfigError: config.json has an unknown key, lacks one or has a value out of range.
        """
        config, read_tensors = cls.saved_config(name_or_path, revision=revision)
        make: Any = cls
        # On the meta device: compare shapes with those of the file before allocating memory.
        with torch.device("meta"):
            adapter: Self = make(**config)
        tensors = read_tensors({name: tensor.shape for name, tensor in adapter.state_dict().items()})
        adapter.load_state_dict(tensors, assign=True)
        for name, module in adapter.named_children():
            module.to(device=device, dtype=None if name == "context" else dtype)
        adapter.eval()
        return adapter

    @classmethod
    def saved_config(
        cls, name_or_path: str | Path, *, revision: str | None = None
    ) -> tuple[dict[str, Any], ReadTensors]:
        """Return a saved adapter's validated arguments and a function that reads its tensors."""
        return load_adapter_files(name_or_path, cls, revision=revision, check=check_saved)


def uses_muon(name: str) -> bool:
    """Return whether Muon optimises the adapter's parameter of this name, provided that it is a matrix."""
    return ".branches." in f".{name}" or ".refiner.blocks." in f".{name}"
