"""The readings of rivals: each names a source of states or a connector, and creates the rival with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from torch import nn

from llmdiff.adapter import families, layers, refiner
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.layer_groups import layer_groups
from llmdiff.language.blocks import Lone
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.conditioning import Conditioning
from llmdiff_lab.rivals.base_text import BaseTextStates
from llmdiff_lab.rivals.block_inputs import EnteringStates
from llmdiff_lab.rivals.connector import Connector, ConnectorConditioning, check_family
from llmdiff_lab.rivals.ella import EllaConnector
from llmdiff_lab.rivals.encoder import EncoderStates
from llmdiff_lab.rivals.last_hidden import LastHiddenStates
from llmdiff_lab.rivals.lavi_bridge import LaviBridgeConnector, denoiser_lora, llm_lora
from llmdiff_lab.rivals.layer_attention import LayerAttention
from llmdiff_lab.rivals.layer_weights import LayerWeights
from llmdiff_lab.rivals.learned_source import LearnedSource
from llmdiff_lab.rivals.llm4gen import Llm4GenConnector
from llmdiff_lab.rivals.lora import RemovableLora
from llmdiff_lab.rivals.norm_average import NormAverageStates
from llmdiff_lab.rivals.per_block import PerBlockConnector
from llmdiff_lab.rivals.query_adapter import QueryAdapterConnector
from llmdiff_lab.rivals.registers import Registers
from llmdiff_lab.rivals.routed_mean import RoutedMean
from llmdiff_lab.rivals.rows import RivalRow
from llmdiff_lab.rivals.taps import Taps
from llmdiff_lab.rivals.two_branch import AdapterConditioning
from llmdiff_lab.rivals.update_sum import BlockPosterior, Consecutive, ContextOnly, DecoderPosterior


@dataclass(frozen=True, kw_only=True)
class RivalInputs:
    """The models and settings that rivals are made from.

    Fields:
        pipe: the frozen base pipeline. llm, encoder, t5: frozen readers or None.
        template: used by everything that reads the LLM. lone: used by our encodings.
        captions: ordinary captions for calibration; none if saved weights are loaded afterwards.
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


Reader = Literal["llm", "encoder", "t5"]
Make = Callable[[RivalInputs, RivalRow], Conditioning]


@dataclass(frozen=True, kw_only=True)
class RivalReading:
    """A way to read prompts.

    Fields:
        needs: the frozen reader that it needs. takes: the fields of a row that it uses.
        make: creates the conditioning of a row.
    """

    needs: Reader | None
    takes: frozenset[str]
    make: Make


def _adapter(parts: RivalInputs, source: Any, row: RivalRow, **context: Any) -> LLMDiffAdapter:
    context = {"encoding": None, "num_blocks": 0, **context}
    more = {"sample_prompts": list(parts.captions[:16])} if parts.captions else {}
    adapter: LLMDiffAdapter = LLMDiffAdapter.create(
        parts.pipe,
        llm_id=source.id,
        hidden_size=source.hidden_size,
        base_model_id=parts.base_model_id,
        refiner_layers=row.refiner_layers,
        refiner_width=_refiner_width(parts, source, row),
        routing=_groups(parts, row),
        routing_form=row.routing_form,
        **context,
        **more,
    )
    return adapter


def _refiner_width(parts: RivalInputs, source: Any, row: RivalRow) -> int:
    """Return the width of the refiner's blocks."""
    if row.refiner_width == "wide":
        return refiner.wide(source.hidden_size)
    text_width = families.text_width(families.denoiser_of(parts.pipe), families.family_of(parts.pipe))
    return refiner.narrow(source.hidden_size, text_width)


def _groups(parts: RivalInputs, row: RivalRow) -> int:
    """Return the number of groups of attention layers with separate states."""
    count = len(layers.text_layers(families.denoiser_of(parts.pipe)))
    return min(row.routing, count) if row.routing else count


def _reads(
    needs: Reader | None, make_source: Callable[[RivalInputs, RivalRow], Any], *takes: str
) -> RivalReading:
    """Return the reading of a source of states by our adapter."""

    def make(parts: RivalInputs, row: RivalRow) -> Conditioning:
        source = make_source(parts, row)
        if isinstance(source, LearnedSource):
            source.to(next(families.denoiser_of(parts.pipe).parameters()).device)
            if parts.captions:
                source.calibrate(parts.captions)
        return AdapterConditioning(_adapter(parts, source, row), source)

    return RivalReading(needs=needs, takes=frozenset({"refiner_layers", "refiner_width", *takes}), make=make)


def _reads_llm(source: Callable[..., Any]) -> RivalReading:
    return _reads("llm", lambda parts, row: source(parts.llm, template=parts.template))


def _ours(encoding: Literal["guided", "paper"]) -> RivalReading:
    def make(parts: RivalInputs, row: RivalRow) -> Conditioning:
        llm = parts.llm
        assert llm is not None
        adapter = _adapter(
            parts,
            llm,
            row,
            num_blocks=llm.num_blocks,
            encoding=encoding,
            lone=row.lone or parts.lone,
            template=parts.template,
        )
        if adapter.context is not None and parts.captions:
            adapter.context.calibrate(llm, parts.captions)
        return AdapterConditioning(
            adapter,
            llm,
            learn_gains=row.learn_gains,
            noise=row.noise,
            branches=row.branches,
            denoiser_lora=_denoiser_lora(row, families.denoiser_of(parts.pipe)),
            llm_lora=llm_lora(llm) if "llm" in row.lora else None,
        )

    takes = set(RivalRow.model_fields) - {"title", "group", "reading"}
    return RivalReading(needs="llm", takes=frozenset(takes), make=make)


def _denoiser_lora(row: RivalRow, denoiser: nn.Module) -> RemovableLora | None:
    return denoiser_lora(denoiser) if "denoiser" in row.lora else None


def _connects(
    make_connector: Callable[[RivalInputs, RivalRow, LastHiddenStates, int], Connector], *takes: str
) -> RivalReading:
    """Return the reading of a connector, made from the LLM's last hidden states and the width of the text states."""

    def make(parts: RivalInputs, row: RivalRow) -> Conditioning:
        check_family(parts.pipe)
        assert parts.llm is not None
        denoiser = families.denoiser_of(parts.pipe)
        width = families.text_width(denoiser, families.family_of(parts.pipe))
        source = LastHiddenStates(parts.llm, template=parts.template)
        connector = make_connector(parts, row, source, width)
        return ConnectorConditioning(connector.to(next(denoiser.parameters()).device))

    return RivalReading(needs="llm", takes=frozenset(takes), make=make)


def _ella(parts: RivalInputs, row: RivalRow, source: LastHiddenStates, width: int) -> Connector:
    denoiser: Any = families.denoiser_of(parts.pipe)
    return EllaConnector(source, width=width, time_channels=int(denoiser.config.block_out_channels[0]))


def _lavi(parts: RivalInputs, row: RivalRow, source: LastHiddenStates, width: int) -> Connector:
    return LaviBridgeConnector(source, families.denoiser_of(parts.pipe), width=width, lora=row.lora)


def _llm4gen(parts: RivalInputs, row: RivalRow, source: LastHiddenStates, width: int) -> Connector:
    pipe = parts.pipe
    lora = _denoiser_lora(row, families.denoiser_of(pipe))
    return Llm4GenConnector(source, pipe.tokenizer, pipe.text_encoder, denoiser_lora=lora)


def _per_block(parts: RivalInputs, row: RivalRow, source: LastHiddenStates, width: int) -> Connector:
    # In the order of the forward pass; modules are listed down, up, middle.
    texts = layers.text_layers(families.denoiser_of(parts.pipe))
    connector = PerBlockConnector(source, list(layer_groups(texts, len(texts))), width=width)
    base = _base_states(parts, row).encode(list(parts.captions[:16]) or ["a photo of a cat"])
    connector.start(float(base.states[base.token_mask].square().mean().sqrt()))
    return connector


def _base_states(parts: RivalInputs, row: RivalRow) -> BaseTextStates:
    return BaseTextStates(parts.pipe.tokenizer, parts.pipe.text_encoder)


READINGS: dict[str, RivalReading] = {
    "base-states": _reads(None, _base_states),
    "encoder": _reads("encoder", lambda parts, row: parts.encoder),
    "t5": _reads("t5", lambda parts, row: parts.t5),
    "t5-blocks": _reads("t5", lambda parts, row: BlockPosterior(cast(EncoderStates, parts.t5))),
    "t5-decoder-blocks": _reads("t5", lambda parts, row: DecoderPosterior(cast(EncoderStates, parts.t5))),
    "last-hidden": _reads_llm(LastHiddenStates),
    "penultimate": _reads_llm(partial(EnteringStates, block=-1)),
    "norm-average": _reads_llm(NormAverageStates),
    "layer-weights": _reads_llm(LayerWeights),
    "routed-mean": _reads(
        "llm",
        lambda parts, row: RoutedMean(
            cast(DecoderLLM, parts.llm), template=parts.template, groups=_groups(parts, row)
        ),
        "routing",
    ),
    "layer-attention": _reads_llm(LayerAttention),
    "taps": _reads_llm(Taps),
    "registers": _reads_llm(Registers),
    "first-states": _reads_llm(partial(EnteringStates, block=0)),
    "context-only": _reads_llm(ContextOnly),
    "consecutive": _reads_llm(Consecutive),
    "paper": _ours("paper"),
    "guided": _ours("guided"),
    "per-block": _connects(_per_block),
    "ella": _connects(_ella),
    "lavi-bridge": _connects(_lavi, "lora"),
    "llm4gen": _connects(_llm4gen, "lora"),
    "query-adapter": _connects(
        lambda parts, row, source, width: QueryAdapterConnector(source, parts.pipe.tokenizer, width=width)
    ),
}
