"""Port an adapter to another LLM from captions alone: a linear map in closed form, then training from text.

The training is that of `training.warm_start`, with the old adapter on the old LLM as target instead of the base's text
encoder. For queries z from the base's attention layers and a caption y,

    loss = mean over layers of  |New(z, c'(y)) - Old(z, c(y))|^2  /  variance of Old(z, c(y))

OUT/                the ported adapter
OUT/port/           report.json, log.jsonl and checkpoints of the training, the store of encodings
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from llmdiff.adapter import families
from llmdiff.adapter.attach import check_fits
from llmdiff.adapter.card import adapter_card, source_name
from llmdiff.adapter.storage import CONFIG_NAME
from llmdiff.controller import LLMController
from llmdiff.errors import AdapterMismatchError, ConfigError, DataError, OutputError
from llmdiff.files import read_json, write_whole
from llmdiff.language.cache import EncodingCache
from llmdiff.language.digests import adapter_digest, model_digest
from llmdiff.language.llm import DecoderLLM
from llmdiff.language.loading import same_model_name
from llmdiff.training.adapter_conditioning import AdapterConditioning
from llmdiff.training.adapter_pair import AdapterPair, layer_outputs, llm_of
from llmdiff.training.checkpoint import only_run
from llmdiff.training.closed_form import (
    Moments,
    TokenMap,
    empty_adapter,
    fit_map,
    fold_map,
    readers_metric,
)
from llmdiff.training.conditioning import Conditioned
from llmdiff.training.loop_config import LoopConfig
from llmdiff.training.warm_start import BaseQueries, stored_queries, warm_start

MIN_CAPTIONS = 20
_log = logging.getLogger(__name__)
_CALIBRATION_CAPTIONS, _QUERY_CAPTIONS, _MOST_HELD_OUT, _TOGETHER = 256, 64, 64, 16


@dataclass(frozen=True, kw_only=True)
class PortSettings:
    """Settings of the training after the closed form; with `steps` 0 there is none.

    A tenth of the captions, at most 64, is held out to choose the map's penalty and to measure agreement.
    """

    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 3e-4
    seed: int = 0
    checkpoint_every_s: float = 180.0


@dataclass(frozen=True, kw_only=True)
class Ported:
    """A ported adapter and its agreement with the old one on held-out captions.

    Fields:
        token_map: the linear map between both LLMs' encodings.
        closed_form, trained: for every held-out caption, the unexplained share of the variance of the layers' outputs,
            mean over layers; None if the family has no layers to compare. They are equal if training made the
            agreement worse and the closed form was kept.
    """

    controller: LLMController
    token_map: TokenMap
    closed_form: list[float] | None
    trained: list[float] | None


def port_adapter(
    old: LLMController,
    llm: DecoderLLM,
    pipe: Any,
    captions: Sequence[str],
    out: Path,
    settings: PortSettings | None = None,
) -> Ported:
    """Create an adapter for `llm` that gives the outputs of the old one with its LLM, and write it to `out`.

    A repeated call resumes from the last checkpoint.

    Raises:
        AdapterMismatchError: the adapter is for this LLM already, for another pipeline, or reads no LLM's blocks.
        DataError: there are too few captions, or the LLMs share no characters of them.
        ConfigError: the family has no attention layers to train on captions, and `settings.steps` is not 0.
        OutputError: `out` cannot be written, or has other content.
        LLMDiffError: see `training.loop.train`.
    """
    settings = settings or PortSettings()
    _check(old, llm, pipe, settings)
    texts = list(dict.fromkeys(text for text in captions if text.strip()))
    if len(texts) < MIN_CAPTIONS:
        raise DataError(
            f"captions: got {len(texts)} different ones, expected at least {MIN_CAPTIONS}, preferably a thousand: add "
            "captions like those that the adapter was trained on"
        )
    work = out / "port"
    if (out / CONFIG_NAME).exists() and not work.is_dir():
        raise OutputError(f"out {out} has an adapter that was not ported there: choose another folder")
    denoiser: Any = families.denoiser_of(pipe)
    denoiser.requires_grad_(False).eval()
    with only_run(work):
        made_from = _made_from(old, llm, texts, settings)
        _check_begun(work / "begun.json", made_from)
        held, kept = hold_out(texts)
        new = empty_adapter(old.adapter, llm)
        assert new.context is not None
        assert old.adapter.context is not None
        new.context.calibrate(llm, kept[:_CALIBRATION_CAPTIONS])
        stores = (
            EncodingCache(work / "store", llm_of(old), old.adapter.context),
            EncodingCache(work / "store", llm, new.context),
        )
        for who, store in zip((old.llm, llm), stores, strict=True):
            with tqdm(desc=f"encoding with {who.id}", mininterval=2) as bar:
                store.fill([*texts, ""], progress=bar.update)
        pair = AdapterPair(old, LLMController(llm, new), stores)
        fitted, tried = (Moments(pair.aligned(part)) for part in ([*kept, ""], held))
        metric = readers_metric(old.adapter, fitted.spread)
        found = fit_map(fitted, tried, metric)
        fold_map(old.adapter, new, found, metric)
        closed = trained = None
        if _trains(pipe):
            with old.attached(pipe):
                queries = stored_queries(work / "store", pipe, kept[:_QUERY_CAPTIONS], seed=settings.seed)
            closed = trained = pair.disagreement(pipe, held, queries)
            if settings.steps:
                _train(pair, pipe, [*kept, ""], queries, work, settings, must_match=made_from)
                trained = pair.disagreement(pipe, held, queries)
                if not np.mean(trained) <= np.mean(closed):
                    _log.warning(
                        "training made the agreement on held-out captions worse (%.3g of the variance unexplained, "
                        "%.3g before): the closed form is kept; use more captions or a lower learning rate",
                        np.mean(trained), np.mean(closed),
                    )  # fmt: skip
                    fold_map(old.adapter, new, found, metric)
                    trained = closed
        ported = Ported(controller=pair.new, token_map=found, closed_form=closed, trained=trained)
        _save(ported, old, out, settings, len(texts))
    return ported


def hold_out(captions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the held-out captions, a tenth and at most 64, and the others."""
    order = np.random.default_rng(0).permutation(len(captions))
    count = min(_MOST_HELD_OUT, len(captions) // 10)
    return [captions[i] for i in order[:count]], [captions[i] for i in order[count:]]


def _train(
    pair: AdapterPair,
    pipe: Any,
    captions: Sequence[str],
    queries: BaseQueries,
    work: Path,
    settings: PortSettings,
    *,
    must_match: dict[str, Any],
) -> None:
    """Train the new adapter to give the layers' outputs of the old one."""
    adapter, store = pair.new.adapter, pair.stores[1]
    assert adapter.context is not None
    adapter.context.requires_grad_(False)
    adapter.train()

    def conditioned(indices: Sequence[int], generator: torch.Generator) -> Conditioned:
        return adapter.condition(store.batch([captions[i] for i in indices]))

    warm_start(
        pipe,
        AdapterConditioning(adapter, pair.new.llm),
        captions,
        conditioned,
        lambda: queries,
        LoopConfig(
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_warmup_steps=min(20, settings.steps // 10),
            ema_horizon=max(2, settings.steps // 10),
            seed=settings.seed,
            checkpoint_every_s=settings.checkpoint_every_s,
            log_every=10,
        ),
        work,
        batch_size=settings.batch_size,
        caption_dropout=0.1,  # the last caption is the empty one, for guidance
        target=layer_outputs(pair.old.adapter, pair.stores[0], pipe, captions),
        title=f"port to {pair.new.llm.id}",
        must_match=must_match,
    )
    adapter.eval()


def _check(old: LLMController, llm: DecoderLLM, pipe: Any, settings: PortSettings) -> None:
    """Check that the adapter can be ported, before any computation."""
    check_fits(pipe, old.adapter)
    if old.adapter.context is None:
        raise AdapterMismatchError(
            "the adapter does not read an LLM's blocks: expected an adapter made by `llmdiff train`"
        )
    llm_of(old)
    if old.adapter.context.routed is not None:
        raise AdapterMismatchError(
            "the adapter has gains for groups of attention layers (routing), which cannot be ported: expected one with "
            "routing 1"
        )
    if same_model_name(llm.id, old.llm.id):
        raise AdapterMismatchError(
            f"llm {llm.id!r} is the LLM of the adapter, expected another one: use the adapter directly, or another LLM"
        )
    if settings.steps and not _trains(pipe):
        raise ConfigError(
            f"steps is {settings.steps}, but the attention of {families.family_of(pipe).title} cannot be trained on "
            "captions alone: set it to 0 for the closed form"
        )


def _trains(pipe: Any) -> bool:
    return families.family_of(pipe).text_channel == "states"


def _made_from(
    old: LLMController, llm: DecoderLLM, texts: Sequence[str], settings: PortSettings
) -> dict[str, Any]:
    """Return the values that must be equal when a port resumes."""
    return {
        "adapter": adapter_digest(old.adapter),
        "weights of the old LLM": model_digest(llm_of(old).model),
        "weights of the LLM": model_digest(llm.model),
        "captions": sha256(json.dumps(texts).encode()).hexdigest(),
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }


def _check_begun(path: Path, made_from: Mapping[str, Any]) -> None:
    """Save the values that a port depends on, and raise an error if saved ones differ."""
    if path.exists():
        changed = [name for name, value in read_json(path).items() if made_from.get(name) != value]
        if changed:
            raise OutputError(
                f"out {path.parent.parent} was started with other {', '.join(changed)}: use another folder"
            )
    write_whole(path, json.dumps(dict(made_from), indent=1) + "\n")


def _save(ported: Ported, old: LLMController, out: Path, settings: PortSettings, captions: int) -> None:
    adapter = ported.controller.adapter
    is_trained = ported.trained != ported.closed_form
    steps = f", then {settings.steps} steps of training on captions" if is_trained else ""
    history = (
        f"It was ported with `llmdiff port` from an adapter for {source_name(old.llm.id)}, without pictures: a linear "
        f"map between both LLMs' encodings of {captions} captions{steps}."
    )
    if ported.trained is not None:
        history += (
            f" On held-out captions, {100 * float(np.mean(ported.trained)):.1f} % of the variance of the attention "
            "layers' outputs differ from the old adapter's."
        )
    card = adapter_card(adapter, repo_id=out.absolute().name, history=history)
    adapter.save_pretrained(out, card=card)
    report = {
        "from": {"llm": old.llm.id, "adapter_sha256": adapter_digest(old.adapter)},
        "llm": ported.controller.llm.id,
        "captions": captions,
        "settings": asdict(settings),
        "map": {name: getattr(ported.token_map, name) for name in ("tokens", "ridge", "unexplained")},
        "unexplained_closed_form": ported.closed_form,
        "unexplained": ported.trained,
    }
    write_whole(out / "port" / "report.json", json.dumps(report, indent=1) + "\n")
