"""Load the models: adapter, LLM and pipeline on a device."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmdiff.checks import bounds
from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError, first_line

if TYPE_CHECKING:
    from llmdiff.adapter.settings import Control
    from llmdiff.controller import LLMController
    from llmdiff.language.rewording import Rewording

# torch, transformers and diffusers are imported inside functions, as their import takes seconds.

_ENSEMBLE_TEMPERATURE = 0.7
_log = logging.getLogger(__name__)


Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models to draw with, and how the LLM controls the pipeline.

    Fields:
        adapter, llm, pipeline: names, folders or Hub ids; None: those that the adapter was trained with.
        encodings: a file or folder of saved encodings, which are drawn with no LLM in memory; see `SavedEncodings`.
        scale, keep_base_text, weighted: see `Control`.
        block_gains, layer_scale: see `Control`, as texts: "0-9=0.5,20=2" and "down_blocks.*=0.5,mid_block.*=1".
        device: None: an accelerator if there is one, else "cpu".
        dtype: of LLM and pipeline.
        trust_remote_code: whether Python code that comes with the LLM may run.
        reword_url, reword_model: address and name of a closed LLM that rewords every prompt; both or none.
        reword_answers: number of its answers, whose encodings are averaged.

    Raises:
        ConfigError: a value is out of range or unknown, one of `reword_url` and `reword_model` is missing, or
            `encodings` is given together with an LLM.
    """

    adapter: str = "openmoji"
    llm: str | None = None
    encodings: str | None = None
    pipeline: str | None = None
    scale: float | None = None
    keep_base_text: bool = False
    weighted: bool = False
    block_gains: str | None = None
    layer_scale: str | None = None
    device: str | None = None
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    reword_url: str | None = None
    reword_model: str | None = None
    reword_answers: int = 1

    def __post_init__(self) -> None:
        if self.scale is not None:
            bounds.SCALE.check("scale", self.scale)
        if (self.reword_url is None) != (self.reword_model is None):
            raise ConfigError(
                f"reword_url is {self.reword_url!r} and reword_model {self.reword_model!r}, expected both or none: "
                "give the address of a closed LLM and its name there"
            )
        other = "llm" if self.llm is not None else "reword_url" if self.reword_url is not None else None
        if self.encodings is not None and other is not None:
            raise ConfigError(
                f"encodings is {short(self.encodings)} and {other} is given, expected one of them: with saved "
                "encodings no LLM reads or rewords the prompts"
            )
        bounds.ANSWERS.check("reword_answers", self.reword_answers)
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype is {self.dtype!r}, expected one of {', '.join(get_args(Dtype))}")

    @cached_property
    def control(self) -> "Control":
        """Return how the LLM controls the pipeline.

        Raises:
            ConfigError: a number is out of range, or `reword_url` is not a valid address or would send its key
                unencrypted.
        """
        from llmdiff.adapter.gain_settings import parse_block_gains, parse_layer_scale
        from llmdiff.adapter.settings import Control

        return Control(
            scale=self.scale,
            keep_base_text=self.keep_base_text,
            weighted=self.weighted,
            block_gains=None if self.block_gains is None else parse_block_gains(self.block_gains),
            layer_scale=None if self.layer_scale is None else parse_layer_scale(self.layer_scale),
            rewording=_rewording(self),
        )

    def metadata(self) -> dict[str, object]:
        """Return the fields that a picture depends on besides the models' weights; defaults are None."""
        return {
            "scale": self.scale,
            "keep_base_text": "yes" if self.keep_base_text else None,
            "weighted": "yes" if self.weighted else None,
            "block_gains": self.block_gains,
            "layer_scale": self.layer_scale,
            "reword_model": self.reword_model,
            "reword_answers": self.reword_answers if self.reword_answers > 1 else None,
            "dtype": self.dtype,
        }


@contextmanager
def _collector_waits() -> Iterator[None]:
    """Return a context without garbage collection, as imports create hundreds of thousands of objects.

    Traversing them repeatedly would take a seventh of the time of a cold start and find nothing to collect.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@_collector_waits()
def load(models: Models, *, base_draws: bool = True) -> tuple["LLMController", Any]:
    """Return the controller and the pipeline, on the device, not attached yet.

    With `base_draws=False` the caller draws with the LLM in control only. The base's own text encoders are then loaded
    only if the LLM does not draw alone, see `Control.reads_base`.

    Raises:
        ConfigError: the device is not available.
        LLMDiffError: an adapter, LLM or pipeline is missing, damaged or does not fit.
    """
    import torch

    device = usable_device(models.device)
    controller = load_controller(models, device=device)
    scale = controller.scale if models.scale is None else models.scale
    pipe = controller.load_pipeline(
        models.pipeline,
        device=device,
        dtype=getattr(torch, models.dtype),
        text_encoders=base_draws or replace(models.control, scale=scale).reads_base,
    )
    # Progress bars on a terminal only: in a log they are pages of partial lines.
    pipe.set_progress_bar_config(disable=None, desc="drawing", leave=False)
    return controller, pipe


def models_digests(controller: "LLMController", pipe: Any) -> dict[str, str]:
    """Return digests of the LLM, the adapter and the pipeline, which identify the models of a picture.

    Call it while nothing is attached to the pipeline.
    """
    from llmdiff.language.digests import adapter_digest, llm_digest, pipeline_digest
    from llmdiff.language.saved_encodings import SavedEncodings

    llm = controller.llm
    return {
        "llm_sha256": llm.origin.llm_sha256 if isinstance(llm, SavedEncodings) else llm_digest(llm),
        "adapter_sha256": adapter_digest(controller.adapter),
        "pipeline_sha256": pipeline_digest(pipe),
    }


def load_controller(models: Models, *, device: str) -> "LLMController":
    """Return the controller of `models`, on the device.

    Raises:
        ConfigError: see `Models.control`.
        LLMDiffError: see `LLMController.from_pretrained`.
    """
    import torch

    from llmdiff.controller import LLMController
    from llmdiff.language.llm import DecoderLLM
    from llmdiff.language.saved_encodings import SavedEncodings
    from llmdiff.language.whole_weights import damage_named

    _ = models.control  # first, so that its errors show before models are loaded
    _log.info("loading %s ...", models.adapter)
    how: dict[str, Any] = {
        "device": device,
        "dtype": getattr(torch, models.dtype),
        "trust_remote_code": models.trust_remote_code,
    }
    llm: Any = None
    if models.encodings is not None:
        llm = SavedEncodings.load(models.encodings)
    elif models.llm is not None:
        with damage_named(f"llm {models.llm!r}"):
            llm = DecoderLLM.from_pretrained(models.llm, **how)
    if llm is not None:
        # A user's LLM only has to have the right sizes, else warn; that of encodings was chosen with the prompts.
        how = {"device": device, "strict": False}
    with damage_named(f"adapter {models.adapter!r}"):
        return LLMController.from_pretrained(models.adapter, llm=llm, **how)


def _rewording(models: Models) -> "Rewording | None":
    if models.reword_url is None or models.reword_model is None:
        return None
    from llmdiff.language.closed_llm import ClosedLLM, ClosedLLMSettings
    from llmdiff.language.gguf import llmdiff_home
    from llmdiff.language.rewording import Rewording

    several = models.reword_answers > 1
    settings = ClosedLLMSettings(
        url=models.reword_url,
        model=models.reword_model,
        answers=models.reword_answers,
        # At temperature 0 all answers would be the same.
        temperature=_ENSEMBLE_TEMPERATURE if several else 0.0,
    )
    closed = ClosedLLM(settings, llmdiff_home() / "answers")
    return Rewording(closed=closed, keep="prompt" if several else "answer")


def scale_of(models: Models) -> float:
    """Return the scale to draw with: the given one, or the adapter's own, read from its config.

    Raises:
        AdapterNotFoundError: there is no such adapter.
        CorruptWeightsError: it is damaged.
    """
    return float(_saved_config(models).get("scale", 1.0)) if models.scale is None else models.scale


def gains_of_thirds(models: Models, thirds: Sequence[float]) -> str | None:
    """Return `block_gains` with a factor for the early, middle and late blocks of the adapter's LLM; None for 1 alone.

    Raises:
        AdapterNotFoundError: there is no such adapter.
        CorruptWeightsError: it is damaged.
    """
    if all(factor == 1 for factor in thirds):
        return None
    count = int(_saved_config(models)["num_blocks"])
    ends = [count * part // len(thirds) for part in range(len(thirds) + 1)]
    parts = zip(ends[:-1], ends[1:], thirds, strict=True)
    return ",".join(f"{start}-{end - 1}={factor:g}" for start, end, factor in parts if end > start)


def _saved_config(models: Models) -> dict[str, Any]:
    from llmdiff.adapter.adapter import LLMDiffAdapter
    from llmdiff.controller import adapter_source

    config, _ = LLMDiffAdapter.saved_config(adapter_source(models.adapter))
    return dict(config)


def usable_device(name: str | None) -> str:
    """Return the device's name after testing it; for None, the accelerator if there is one, else "cpu".

    Raises:
        ConfigError: the device is not available.
    """
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type
    try:
        torch.zeros(1, device=name).item()  # "meta" has no values
    except Exception as error:  # depends on the device: ModuleNotFoundError, AssertionError, ...
        raise ConfigError(
            f'device {short(name)} is not available here ({first_line(error)}): leave it out, or use "cpu"'
        ) from error
    return name
