"""Connectors: trained modules whose states the denoiser's own cross-attention reads, as in published systems."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdiff.adapter import families
from llmdiff.adapter.attach import is_attached
from llmdiff.adapter.installation import installation_on
from llmdiff.adapter.texts import negative_texts, prompt_texts
from llmdiff.errors import AttachError, UnsupportedPipelineError
from llmdiff.training.conditioning import Conditioning, Stage
from llmdiff.types import TextEncoding
from llmdiff_lab.rivals.last_hidden import LastHiddenStates

_HIDDEN = -10_000.0  # the value that diffusers' U-Net adds to masked attention scores


class Connector(nn.Module, ABC):
    """A trained module between frozen text states and the denoiser.

    It works in three parts: `read` is frozen, so a caption is read once; `carried` is trained and computed once per
    drawing; `at_step` is trained and computed at every time step.

    Fields:
        source: the frozen LLM that it reads. id: its name.
        layers: attention layers that each read their own slice of the states' width; empty if all read all of it.
    """

    layers: tuple[str, ...] = ()
    keeps: Literal["encodings", "nothing"] = "encodings"

    def __init__(self, source: LastHiddenStates) -> None:
        super().__init__()
        self.source, self.id = source, source.id

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> Any:
        """Return the frozen states of the prompts; `keeps` names their kind."""

    def carried(self, raw: Any) -> TextEncoding:
        """Return the states computed once per drawing. Shapes: (B, T, any width), (B, T)."""
        assert isinstance(raw, TextEncoding)
        return raw

    def at_step(self, encoding: TextEncoding, timesteps: Tensor) -> TextEncoding:
        """Return the states that attention reads. Shapes: timesteps (B,) => (B, T, W * max(1, layers)), (B, T)."""
        return encoding

    def extended(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the connector's trained layers are inside the denoiser."""
        return nullcontext()

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter of this name."""
        return False

    def lr_share(self, name: str) -> float:
        """Return the factor of the learning rate for the parameter of this name."""
        return 1.0


class ConnectorConditioning(Conditioning):
    """A connector in front of a U-Net's own, frozen cross-attention; for the family "sd"."""

    def __init__(self, connector: Connector) -> None:
        self.connector = connector
        self.source_id = connector.id
        self.modules = {"connector": connector}

    def stages(self) -> Iterator[Stage]:
        """Yield one stage: the readings of all captions fit in memory."""
        connector = self.connector
        yield Stage(
            name="main",
            keeps=connector.keeps,
            read=connector.read,
            condition=lambda raw, _: (packed(connector.carried(raw)), None),
            key="fixed",
        )

    def layer_inputs(self, states: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the connector's states for packed states at these time steps, and their additive mask."""
        read = _at_step(self.connector, states, timesteps)
        return read.states, (1 - read.token_mask.to(read.states))[:, None] * _HIDDEN

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the packed states of the prompts, which diffusers passes on. Shapes: (B, T, width + 1)."""
        return packed(self.connector.carried(self.connector.read(prompts)))

    @contextmanager
    def installed(self, denoiser: nn.Module) -> Iterator[None]:
        """Return a context in which the U-Net reads `packed` states; its weights do not change.

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
                share = partial(_own_slice, index, len(connector.layers))
                layer = denoiser.get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(share, with_kwargs=True).remove)
            yield

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[Any]:
        """Return a context in which the pipeline draws through this connector.

        Raises:
            UnsupportedPipelineError: the pipeline is not of the family "sd".
            AttachError: an LLM or a connector is attached already.
        """
        check_family(pipe)
        if is_attached(pipe) or "encode_prompt" in vars(pipe):
            raise AttachError("pipe already has something attached: detach that first")
        self.train(False)
        with self.installed(families.denoiser_of(pipe)):
            pipe.encode_prompt = self._encode_prompt
            try:
                yield pipe
            finally:
                del pipe.encode_prompt

    def _encode_prompt(
        self,
        prompt: Any,
        device: Any,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: Any = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Do the work of a Stable Diffusion pipeline's `encode_prompt` with the connector's states."""
        if any(more.get(name) is not None for name in ("prompt_embeds", "negative_prompt_embeds")):
            raise UnsupportedPipelineError(
                "prompt_embeds are given while a connector is attached: give the prompt as text"
            )
        texts = prompt_texts("prompt", prompt, may_be_blank=False, weighted=False)
        unwanted = negative_texts(negative_prompt, len(texts)) if do_classifier_free_guidance else []
        # Each distinct text once, in one call, so that all are padded to one length.
        every = list(dict.fromkeys([*texts, *unwanted]))
        states = self.encode(every).to(device)

        def of(wanted: list[str]) -> Tensor:
            rows = states[[every.index(text) for text in wanted]]
            return rows.repeat_interleave(num_images_per_prompt, dim=0)

        return of(texts), of(unwanted) if unwanted else None

    def uses_muon(self, name: str) -> bool:
        """Return whether Muon optimises the parameter of this name."""
        return self.connector.uses_muon(name)

    def lr_share(self, name: str) -> float:
        """Return the factor of the learning rate for the parameter of this name."""
        return self.connector.lr_share(name)


def check_family(pipe: Any) -> None:
    """Check that connectors can be used with this pipeline.

    Raises:
        UnsupportedPipelineError: the pipeline is not of the family "sd", whose text states reach attention unchanged.
    """
    family = families.family_of(pipe)
    if family.name != "sd":
        raise UnsupportedPipelineError(
            f"pipe is of the family {family.title} ({family.name}), connectors are for Stable Diffusion 1.x/2.x "
            "(sd): use such a pipeline"
        )


def packed(encoding: TextEncoding) -> Tensor:
    """Append the token mask to the states as a column, so that diffusers passes it on.

    Shapes: (B, T, width) => (B, T, width + 1).
    """
    return torch.cat([encoding.states, encoding.token_mask.to(encoding.states)[..., None]], dim=-1)


class _AtStep:
    """A forward pre-hook of a U-Net: packed states and the time step => the states that cross-attention reads."""

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
    """Unpack the states and return those that cross-attention reads."""
    weight = next(connector.parameters())
    states = states.to(weight.device, weight.dtype)
    timesteps = timesteps.to(weight.device).float().expand(len(states))
    encoding = TextEncoding(states=states[..., :-1], token_mask=states[..., -1] != 0)
    return connector.at_step(encoding, timesteps)


def _own_slice(
    index: int, count: int, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give an attention layer its own slice of the width: a forward pre-hook."""
    states = kwargs["encoder_hidden_states"].chunk(count, dim=-1)[index]
    return args, {**kwargs, "encoder_hidden_states": states.contiguous()}


def side_by_side(first: Tensor, second: TextEncoding) -> TextEncoding:
    """Concatenate `first`, without padding, and `second` along the tokens; pad the narrower one with zeros.

    Shapes: (B, S, V), (B, T, D) => (B, S + T, max(V, D)).
    """
    width = max(first.shape[-1], second.states.shape[-1])
    states = torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in (first, second.states)], dim=1)
    real = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
    return TextEncoding(states=states, token_mask=torch.cat([real, second.token_mask], dim=1))
