"""All ways to condition that can be compared, by name: published systems, ours, and ours with parts removed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.refiner import LAYERS
from llmdiff.errors import ConfigError
from llmdiff.language.blocks import Lone
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.routing import RoutingForm
from llmdiff.training.conditioning import Conditioning
from llmdiff_lab.rivals.base_text import BaseTextStates
from llmdiff_lab.rivals.block_posterior import BlockPosterior
from llmdiff_lab.rivals.connector import Connector, ConnectorConditioning, check_family
from llmdiff_lab.rivals.consecutive import Consecutive
from llmdiff_lab.rivals.context_only import ContextOnly
from llmdiff_lab.rivals.decoder_posterior import DecoderPosterior
from llmdiff_lab.rivals.ella import EllaConnector
from llmdiff_lab.rivals.encoder import EncoderStates
from llmdiff_lab.rivals.first_states import FirstStates
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.lavi_bridge import LaviBridgeConnector, denoiser_lora, llm_lora
from llmdiff_lab.rivals.layer_attention import LayerAttention
from llmdiff_lab.rivals.layer_weights import LayerWeights
from llmdiff_lab.rivals.learned_source import LearnedSource
from llmdiff_lab.rivals.llm4gen import Llm4GenConnector
from llmdiff_lab.rivals.norm_average import NormAverageStates
from llmdiff_lab.rivals.penultimate import PenultimateStates
from llmdiff_lab.rivals.per_block import PerBlockConnector
from llmdiff_lab.rivals.query_adapter import QueryAdapterConnector
from llmdiff_lab.rivals.registers import Registers
from llmdiff_lab.rivals.routed_mean import RoutedMean
from llmdiff_lab.rivals.taps import Taps
from llmdiff_lab.rivals.two_branch import AdapterConditioning

Group = Literal["base", "encoders", "layers", "published", "ours", "parts removed"]


@dataclass(frozen=True, kw_only=True)
class RivalInputs:
    """The models and settings that rivals are made from.

    Fields:
        pipe: the frozen base pipeline. llm, encoder, t5: frozen readers; None where there is none.
        template: used by everything that reads the LLM. lone: used by our encodings.
        captions: ordinary captions that set fixed scales; none if saved weights are loaded afterwards.
        seed: seed of the random weights.
    """

    pipe: Any
    llm: DecoderLLM | None = None
    encoder: EncoderStates | None = None
    t5: EncoderStates | None = None
    template: str | None = None
    lone: Lone = "token+bos"
    captions: Sequence[str] = ()
    base_model_id: str | None = None
    seed: int = 0


Make = Callable[[RivalInputs], Conditioning]


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One row: its name, a short description, the frozen reader it needs, and a function that makes it."""

    name: str
    title: str
    group: Group
    needs: Literal["llm", "encoder", "t5"] | None
    make: Make


def create(name: str, parts: RivalInputs) -> Conditioning:
    """Return an untrained rival by name; torch's global random state does not change.

    Raises:
        ConfigError: the name is unknown, or `parts` lacks the reader it needs.
    """
    row = rival(name)
    if row.needs is not None and getattr(parts, row.needs) is None:
        raise ConfigError(f"rival {name!r} needs {row.needs}, which is None: load one and pass it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parts.seed)
        return row.make(parts)


def rival(name: str) -> Rival:
    """Return the row of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RIVALS:
        raise ConfigError(f"rival is {name!r}, expected one of {', '.join(RIVALS)}")
    return RIVALS[name]


def _adapter(parts: RivalInputs, source: Any, **context: Any) -> LLMDiffAdapter:
    context = {"encoding": None, "num_blocks": 0, **context}
    more = {"sample_prompts": list(parts.captions[:16])} if parts.captions else {}
    adapter: LLMDiffAdapter = LLMDiffAdapter.create(
        parts.pipe,
        llm_id=source.id,
        hidden_size=source.hidden_size,
        base_model_id=parts.base_model_id,
        **context,
        **more,
    )
    return adapter


def _reads(make_source: Callable[[RivalInputs], Any], *, refiner_layers: int = 0, routing: int = 1) -> Make:
    """Return a function that makes our adapter on the states of a source; `routing` 0: a group for each layer."""

    def make(parts: RivalInputs) -> Conditioning:
        source = make_source(parts)
        if isinstance(source, LearnedSource):
            source.to(next(families.denoiser_of(parts.pipe).parameters()).device)
            if parts.captions:
                source.calibrate(parts.captions)
        groups = _groups(parts, routing)
        adapter = _adapter(parts, source, refiner_layers=refiner_layers, routing=groups)
        return AdapterConditioning(adapter, source)

    return make


def _groups(parts: RivalInputs, routing: int) -> int:
    """Return how many groups of attention layers read on their own; 0 stands for one for each layer."""
    count = len(layers.text_layers(families.denoiser_of(parts.pipe)))
    return min(routing, count) if routing else count


def _routed_mean(parts: RivalInputs) -> RoutedMean:
    assert parts.llm is not None
    return RoutedMean(parts.llm, groups=_groups(parts, 0), template=parts.template)


def _reads_llm(source: Callable[..., Any], *, refiner_layers: int = 0) -> Make:
    return _reads(lambda parts: source(parts.llm, template=parts.template), refiner_layers=refiner_layers)


def _ours(
    encoding: Literal["guided", "paper"],
    *,
    lone: Lone | None = None,
    refiner_layers: int = 0,
    lora_in: Sequence[Literal["denoiser", "llm"]] = (),
    routing: int = 1,
    routing_form: RoutingForm = "signed",
    **removed: Any,
) -> Make:
    def make(parts: RivalInputs) -> Conditioning:
        llm = parts.llm
        assert llm is not None
        adapter = _adapter(
            parts,
            llm,
            num_blocks=llm.num_blocks,
            encoding=encoding,
            lone=lone or parts.lone,
            template=parts.template,
            refiner_layers=refiner_layers,
            routing=_groups(parts, routing),
            routing_form=routing_form,
        )
        if adapter.context is not None and parts.captions:
            adapter.context.calibrate(llm, parts.captions)
        added: dict[str, Any] = {}
        if "denoiser" in lora_in:
            added["denoiser_lora"] = denoiser_lora(families.denoiser_of(parts.pipe))
        if "llm" in lora_in:
            added["llm_lora"] = llm_lora(llm)
        return AdapterConditioning(adapter, llm, **added, **removed)

    return make


def _connects(make_connector: Callable[[RivalInputs, nn.Module, int], Connector]) -> Make:
    def make(parts: RivalInputs) -> Conditioning:
        check_family(parts.pipe)
        denoiser = families.denoiser_of(parts.pipe)
        width = families.text_width(denoiser, families.family_of(parts.pipe))
        connector = make_connector(parts, denoiser, width)
        return ConnectorConditioning(connector.to(next(denoiser.parameters()).device))

    return make


def _ella(parts: RivalInputs, denoiser: Any, width: int) -> Connector:
    channels = int(denoiser.config.block_out_channels[0])
    assert parts.llm is not None
    return EllaConnector(parts.llm, width=width, time_channels=channels, template=parts.template)


def _lavi(parts: RivalInputs, denoiser: nn.Module, width: int, *, loras: bool = True) -> Connector:
    assert parts.llm is not None
    return LaviBridgeConnector(parts.llm, denoiser, width=width, loras=loras, template=parts.template)


def _llm4gen(parts: RivalInputs, denoiser: nn.Module, width: int, *, lora: bool = False) -> Connector:
    assert parts.llm is not None
    pipe = parts.pipe
    return Llm4GenConnector(
        parts.llm,
        pipe.tokenizer,
        pipe.text_encoder,
        denoiser_lora=denoiser_lora(denoiser) if lora else None,
        template=parts.template,
    )


def _query_adapter(parts: RivalInputs, denoiser: nn.Module, width: int) -> Connector:
    assert parts.llm is not None
    return QueryAdapterConnector(parts.llm, parts.pipe.tokenizer, width=width, template=parts.template)


def _per_block(parts: RivalInputs, denoiser: nn.Module, width: int) -> Connector:
    assert parts.llm is not None
    # In the order of the forward pass; modules are listed down, up, middle.
    order = ("down_blocks", "mid_block", "up_blocks")
    names = sorted(layers.text_layers(denoiser), key=lambda name: order.index(name.partition(".")[0]))
    connector = PerBlockConnector(parts.llm, names, width=width, template=parts.template)
    base = BaseTextStates(parts.pipe.tokenizer, parts.pipe.text_encoder)
    texts = base.encode(list(parts.captions[:16]) or ["a photo of a cat"])
    connector.start(float(texts.states[texts.token_mask].square().mean().sqrt()))
    return connector


def _rows() -> list[Rival]:
    def row(name: str, title: str, group: Group, needs: Any, make: Make) -> Rival:
        return Rival(name=name, title=title, group=group, needs=needs, make=make)

    def base_states(parts: RivalInputs) -> BaseTextStates:
        return BaseTextStates(parts.pipe.tokenizer, parts.pipe.text_encoder)

    return [
        row("base-states", "our adapter on the base's own text states", "base", None, _reads(base_states)),
        row("base-states-refined", "our adapter on the base's own text states, refined", "base", None,
            _reads(base_states, refiner_layers=LAYERS)),
        row("encoder-only", "last states, encoder-only", "encoders", "encoder", _reads(lambda p: p.encoder)),
        row("encoder-only-refined", "last states, encoder-only, refined", "encoders", "encoder",
            _reads(lambda p: p.encoder, refiner_layers=LAYERS)),
        row("t5-encoder", "last states, T5's encoder", "encoders", "t5", _reads(lambda p: p.t5)),
        row(
            "t5-blocks",
            "sum over T5's encoder blocks",
            "encoders",
            "t5",
            _reads(lambda p: BlockPosterior(p.t5)),  # type: ignore[arg-type]
        ),
        row(
            "t5-decoder-blocks",
            "sum over T5's decoder blocks",
            "encoders",
            "t5",
            _reads(lambda p: DecoderPosterior(p.t5)),  # type: ignore[arg-type]
        ),
        row("last-hidden", "the LLM's last layer", "layers", "llm", _reads_llm(LastHiddenStates)),
        row("last-hidden-refined", "the LLM's last layer, refined", "layers", "llm",
            _reads_llm(LastHiddenStates, refiner_layers=LAYERS)),
        row("penultimate", "the LLM's penultimate layer", "layers", "llm", _reads_llm(PenultimateStates)),
        row("penultimate-refined", "the LLM's penultimate layer, refined", "layers", "llm",
            _reads_llm(PenultimateStates, refiner_layers=LAYERS)),
        row("norm-average", "mean of all layers, normalised", "layers", "llm", _reads_llm(NormAverageStates)),
        row("norm-average-refined", "mean of all layers, normalised, refined", "layers", "llm",
            _reads_llm(NormAverageStates, refiner_layers=LAYERS)),
        row("layer-weights", "learned mixture of all layers", "layers", "llm", _reads_llm(LayerWeights)),
        row("routed-mean", "learned mixture of all layers for each attention layer, refined", "layers", "llm",
            _reads(_routed_mean, refiner_layers=LAYERS, routing=0)),
        row("layer-attention", "attention across the LLM's layers, refined", "layers", "llm",
            _reads_llm(LayerAttention, refiner_layers=LAYERS)),
        row("taps", "three of the LLM's layers side by side, refined", "layers", "llm",
            _reads_llm(Taps, refiner_layers=LAYERS)),
        row("registers", "all layers through one linear layer, registers for padding, refined", "layers", "llm",
            _reads_llm(Registers, refiner_layers=LAYERS)),
        row("query-adapter", "the base's token ids ask the LLM's last layer", "published", "llm",
            _connects(_query_adapter)),
        row("per-block", "another block for every attention layer", "published", "llm", _connects(_per_block)),
        row("ella", "ELLA: a resampler that knows the time step", "published", "llm", _connects(_ella)),
        row("lavi-bridge", "LaVi-Bridge: two-stage MLP, LoRA on both sides", "published", "llm", _connects(_lavi)),
        row("llm4gen", "LLM4GEN: cross-adapter beside CLIP's states", "published", "llm", _connects(_llm4gen)),
        row("llm4gen-lora", "LLM4GEN, and LaVi-Bridge's LoRA in the denoiser", "published", "llm",
            _connects(partial(_llm4gen, lora=True))),
        row("mlp-lora", "LaVi-Bridge's two-stage MLP without either LoRA", "published", "llm",
            _connects(partial(_lavi, loras=False))),
        row("paper", "ours, c = x_0 + sum g s", "ours", "llm", _ours("paper")),
        row("paper-refined", "ours, c = x_0 + sum g s, its tokens refined", "ours", "llm",
            _ours("paper", refiner_layers=LAYERS)),
        row("guided", "ours, c = x_0 + sum (g s + k v)", "ours", "llm", _ours("guided")),
        row("refined", "ours, c = x_0 + sum (g s + k v), its tokens refined", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS)),
        row("refined-lora", "ours, refined, and LaVi-Bridge's LoRA in the denoiser", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS, lora_in=["denoiser"])),
        row("refined-llm-lora", "ours, refined, and LaVi-Bridge's LoRA in the LLM", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS, lora_in=["llm"])),
        row("refined-both-lora", "ours, refined, and LaVi-Bridge's LoRA on both sides", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS, lora_in=["denoiser", "llm"])),
        row("routed", "ours, refined, gains for each of three groups of layers", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS, routing=3)),
        row("routed-layers", "ours, refined, gains for each attention layer", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS, routing=0)),
        row("routed-softmax", "ours, refined, gains for each attention layer, by softmax", "ours", "llm",
            _ours("guided", refiner_layers=LAYERS, routing=0, routing_form="softmax")),
        row("paper-consecutive", "paper, with differences of consecutive blocks", "parts removed", "llm",
            _reads_llm(Consecutive)),
        row("context-only", "no subtraction: x_0 + sum g u", "parts removed", "llm", _reads_llm(ContextOnly)),
        row("x0-alone", "no blocks: c = x_0", "parts removed", "llm", _reads_llm(FirstStates)),
        row("paper-lone-token", "paper, alone = token", "parts removed", "llm", _ours("paper", lone="token")),
        row("paper-lone-bos", "paper, alone = BOS + token", "parts removed", "llm", _ours("paper", lone="token+bos")),
        row("guided-lone-token", "guided, alone = token", "parts removed", "llm", _ours("guided", lone="token")),
        row(
            "guided-lone-bos",
            "guided, alone = BOS + token",
            "parts removed",
            "llm",
            _ours("guided", lone="token+bos"),
        ),
        row(
            "pretrained-branch",
            "guided, without the new branch",
            "parts removed",
            "llm",
            _ours("guided", branches="pretrained"),
        ),
        row("new-branch", "guided, without the pretrained branch", "parts removed", "llm",
            _ours("guided", branches="new")),
        row("fixed-gains", "guided, g and k not learned", "parts removed", "llm",
            _ours("guided", learn_gains=False)),
        row("no-noise", "guided, without noise in training", "parts removed", "llm", _ours("guided", noise=False)),
    ]  # fmt: skip


RIVALS: dict[str, Rival] = {row.name: row for row in _rows()}
