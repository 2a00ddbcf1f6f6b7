"""Connectors: trained parts whose states the denoiser's own cross-attention reads, as published rivals do it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.adapter import families
from llmdiff.adapter.attach import is_attached
from llmdiff.adapter.installation import installation_on
from llmdiff.adapter.texts import negative_texts, prompt_texts
from llmdiff.errors import AttachError, UnsupportedPipelineError
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.conditioning import Conditioning, Keeps, Stage

_HIDDEN = -10_000.0  # as diffusers' U-Net adds to the scores of what it may not see


class Connector(nn.Module, ABC):
    """What stands between frozen text states and the denoiser.

    Three parts: `read` is frozen and the same for a caption in every step; `carried` is trained and the same in
    all steps of a drawing; `at_step` is trained and knows the time step.

    Fields:
        id: the name of what reads the prompts.
        layers: the attention layers that each read a share of their own of the states' width; none: all read all.
    """

    id: str
    layers: tuple[str, ...] = ()
    keeps: Keeps = "encodings"

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> Any:
        """Return the frozen states of the prompts, of the kind that `keeps` says."""

    def carried(self, raw: Any) -> TextEncoding:
        """Return what is computed once for a drawing. Shapes: (B, T, any width), (B, T)."""
        assert isinstance(raw, TextEncoding)
        return raw

    def at_step(self, encoding: TextEncoding, timesteps: Tensor) -> TextEncoding:
        """Return what cross-attention reads. Shapes: timesteps (B,) => (B, T, W * max(1, layers)), (B, T)."""
        return encoding

    def extended(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context where trained parts of the connector are inside the denoiser."""
        return nullcontext()

    def is_hidden(self, name: str) -> bool:
        """Return whether the parameter is a matrix between others, for Muon."""
        return False


class ConnectorConditioning(Conditioning):
    """A connector in front of a U-Net's own, frozen cross-attention; for the family "sd"."""

    def __init__(self, connector: Connector) -> None:
        self.connector = connector
        self.source_id = connector.id
        self.modules = {"connector": connector}

    def stages(self) -> Iterator[Stage]:
        """Yield one stage: nothing that is read is too large to be kept."""
        connector = self.connector
        yield Stage(
            name="main",
            keeps=connector.keeps,
            read=connector.read,
            condition=lambda raw, _: packed(connector.carried(raw)),
            fixed=True,
        )

    def layer_inputs(self, states: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the connector makes of packed states at these time steps, and the mask of what is real."""
        read = _at_step(self.connector, states, timesteps)
        return read.states, (1 - read.token_mask.to(read.states))[:, None] * _HIDDEN

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return what goes through diffusers for these prompts, (B, T, width + 1)."""
        return packed(self.connector.carried(self.connector.read(prompts)))

    @contextmanager
    def installed(self, denoiser: nn.Module) -> Iterator[None]:
        """Return a context where the U-Net takes `packed` states; its weights stay its own.

        Raises:
            AttachError: the U-Net carries an adapter or a connector already.
        """
        if installation_on(denoiser) is not None or any(
            isinstance(hook, _AtStep) for hook in denoiser._forward_pre_hooks.values()
        ):
            raise AttachError("the denoiser already carries an adapter or a connector: detach that first")
        connector = self.connector
        with ExitStack() as stack:
            stack.enter_context(connector.extended(denoiser))
            hook = denoiser.register_forward_pre_hook(_AtStep(connector), with_kwargs=True)
            stack.callback(hook.remove)
            for index, name in enumerate(connector.layers):
                share = _Share(index, len(connector.layers))
                layer = denoiser.get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(share, with_kwargs=True).remove)
            yield

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[Any]:
        """Return a context where the pipeline draws through this connector.

        Raises:
            UnsupportedPipelineError: the pipeline is not of the family "sd".
            AttachError: an LLM or a connector is attached already.
        """
        check_family(pipe)
        if is_attached(pipe) or "encode_prompt" in vars(pipe):
            raise AttachError("pipe already has something attached: detach that first")
        self.train(False)
        with self.installed(families.denoiser_of(pipe)):
            pipe.encode_prompt = _EncodePrompt(pipe, self)
            try:
                yield pipe
            finally:
                del pipe.encode_prompt

    def is_hidden(self, name: str) -> bool:
        """Return what the connector says of it."""
        return self.connector.is_hidden(name)


def check_family(pipe: Any) -> None:
    """Return nothing if connectors can be used with this pipeline.

    Raises:
        UnsupportedPipelineError: it is not of the family "sd", whose text states reach attention unchanged.
    """
    family = families.family_of(pipe)
    if family.name != "sd":
        raise UnsupportedPipelineError(
            f"pipe is of the family {family.title} ({family.name}), connectors are for Stable Diffusion 1.x/2.x "
            "(sd): use such a pipeline"
        )


def packed(encoding: TextEncoding) -> Tensor:
    """Return [states ; real], (B, T, width) => (B, T, width + 1): what carries the mask through diffusers."""
    return torch.cat([encoding.states, encoding.token_mask.to(encoding.states)[..., None]], dim=-1)


class _AtStep:
    """A forward pre-hook of a U-Net: [states ; real] and the time step => what cross-attention reads."""

    def __init__(self, connector: Connector) -> None:
        self.connector = connector

    def __call__(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        states, sample = given["encoder_hidden_states"], given["sample"]
        read = _at_step(self.connector, states, torch.as_tensor(given["timestep"]))
        given["encoder_hidden_states"] = read.states.to(sample)
        given["encoder_attention_mask"] = read.token_mask.to(sample.device)
        return (), given


def _at_step(connector: Connector, states: Tensor, timesteps: Tensor) -> TextEncoding:
    """Return what cross-attention reads of packed states."""
    weight = next(connector.parameters())
    states = states.to(weight.device, weight.dtype)
    timesteps = timesteps.to(weight.device).float().expand(len(states))
    encoding = TextEncoding(states=states[..., :-1], token_mask=states[..., -1] != 0)
    return connector.at_step(encoding, timesteps)


class _Share:
    """A forward pre-hook of an attention layer: it reads the share of the width that is its own."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count

    def __call__(
        self, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = kwargs["encoder_hidden_states"].chunk(self.count, dim=-1)[self.index]
        return args, {**kwargs, "encoder_hidden_states": states.contiguous()}


class _EncodePrompt:
    """Stands in for `encode_prompt` of a Stable Diffusion pipeline: same arguments, the connector's states."""

    def __init__(self, pipe: Any, conditioning: ConnectorConditioning) -> None:
        self.pipe = pipe
        self.conditioning = conditioning

    def __call__(
        self,
        prompt: Any,
        device: Any,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: Any = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if any(more.get(name) is not None for name in ("prompt_embeds", "negative_prompt_embeds")):
            raise UnsupportedPipelineError(
                "prompt_embeds are given while a connector is attached: give the prompt as text"
            )
        texts = prompt_texts("prompt", prompt, may_be_blank=False, weighted=False)
        unwanted = negative_texts(negative_prompt, len(texts)) if do_classifier_free_guidance else []
        # Every different text once; one call, so that all have one length.
        every = list(dict.fromkeys([*texts, *unwanted]))
        states = self.conditioning.encode(every).to(device)

        def of(wanted: list[str]) -> Tensor:
            rows = states[[every.index(text) for text in wanted]]
            return rows.repeat_interleave(num_images_per_prompt, dim=0)

        return of(texts), of(unwanted) if unwanted else None


def side_by_side(first: Tensor, second: TextEncoding) -> TextEncoding:
    """Return rows of `first` (B, S, V), all real, above those of `second`, the narrower padded with zeros.

    Shapes: (B, S, V), (B, T, D) => (B, S + T, max(V, D)).
    """
    width = max(first.shape[-1], second.states.shape[-1])
    states = torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in (first, second.states)], dim=1)
    real = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
    return TextEncoding(states=states, token_mask=torch.cat([real, second.token_mask], dim=1))
