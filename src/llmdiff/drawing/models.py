"""The models that draw, found and loaded: adapter, LLM and pipeline on a device."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmdiff.checks import bounds
from llmdiff.checks.bounds import short
from llmdiff.errors import ConfigError, CorruptWeightsError, OutputError, first_line

if TYPE_CHECKING:
    from llmdiff.controller import LLMController
    from llmdiff.language.advice import Advice

# torch, transformers and diffusers are imported where they are used: seconds that `--help` does not wait for.

_ENSEMBLE_TEMPERATURE = 0.7
_log = logging.getLogger(__name__)


Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Models:
    """Which models draw; None: those that the adapter was made with.

    `scale` is that of `attach`. `dtype` is what LLM and pipeline compute in. `trust_remote_code`: Python code that
    comes with the LLM may run. `via` and `via_model`: the address and name of a closed LLM that is asked about every
    prompt; with `via_answers` above 1 as often, and the encodings that the prompt has beside each answer are averaged.

    Raises:
        ConfigError: a scale outside 0 to 1, a dtype that is none of these, only one of `via` and `via_model`, or no
            answers.
    """

    adapter: str = "openmoji"
    llm: str | None = None
    pipeline: str | None = None
    scale: float | None = None
    device: str | None = None
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    via: str | None = None
    via_model: str | None = None
    via_answers: int = 1

    def __post_init__(self) -> None:
        if self.scale is not None and not bounds.SCALE.holds(self.scale):
            raise ConfigError(
                f"scale is {short(self.scale)}, expected 0 (the base alone) to 1 (the LLM alone)"
            )
        if (self.via is None) != (self.via_model is None):
            raise ConfigError(
                f"via is {self.via!r} and via_model {self.via_model!r}, expected both or none: give the address of a "
                "closed LLM and its name there"
            )
        bounds.ANSWERS.check("via_answers", self.via_answers)
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype is {self.dtype!r}, expected one of {', '.join(get_args(Dtype))}")


@contextmanager
def _collector_waits() -> Iterator[None]:
    """Return the garbage collector waits, as imports make objects by the hundred thousand.

    It would go through all of them again and again, a seventh of the time of a cold start, to find nothing.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@_collector_waits()
def load(models: Models) -> tuple["LLMController", Any]:
    """Return the controller and the pipeline, on the device, with nothing attached yet.

    Raises:
        ConfigError: the device is not there.
        LLMDiffError: an adapter, LLM or pipeline is missing, damaged or does not fit.
    """
    import torch

    device = usable_device(models.device)
    controller = load_controller(models, device=device)
    pipe = controller.load_pipeline(models.pipeline, device=device, dtype=getattr(torch, models.dtype))
    # On a terminal only: in a log, a bar is a page of half-finished lines.
    pipe.set_progress_bar_config(disable=None, desc="drawing", leave=False)
    return controller, pipe


def models_digests(controller: "LLMController", pipe: Any) -> dict[str, str]:
    """Return what tells these models from others of the same names: digests of the LLM, the adapter and the pipeline.

    Whoever keeps drawn pictures keeps these with them. Take them while nothing is attached to the pipeline.
    """
    from llmdiff.language.digests import adapter_digest, llm_digest, pipeline_digest

    return {
        "llm_sha256": llm_digest(controller.llm),
        "adapter_sha256": adapter_digest(controller.adapter),
        "pipeline_sha256": pipeline_digest(pipe),
    }


def load_controller(models: Models, *, device: str) -> "LLMController":
    """Return the controller of `models`, on the device.

    Raises:
        ConfigError: `via` is no address, or would send its key unencrypted.
        LLMDiffError: see `LLMController.from_pretrained`.
    """
    advice = advice_of(models)  # first: what is wrong with it shows at once
    controller = _load_controller(models, device=device)
    controller.llm.advice = advice
    return controller


def advice_of(models: Models) -> "Advice | None":
    """Return the closed LLM that `models` name and what becomes of its answers; None where they name none.

    Raises:
        ConfigError: `via` is no address, or would send its key unencrypted.
    """
    if models.via is None or models.via_model is None:
        return None
    from llmdiff.language.advice import Advice
    from llmdiff.language.gguf import llmdiff_home
    from llmdiff.language.proxy import ClosedLLM, ProxySettings

    several = models.via_answers > 1
    settings = ProxySettings(
        url=models.via,
        model=models.via_model,
        answers=models.via_answers,
        # At temperature 0 all answers would be the same one.
        temperature=_ENSEMBLE_TEMPERATURE if several else 0.0,
    )
    closed = ClosedLLM(settings, llmdiff_home() / "answers")
    return Advice(closed=closed, keep="prompt" if several else "answer")


def scale_of(models: Models) -> float:
    """Return the scale that is drawn with: the one asked for, or the adapter's own, read from its config alone.

    Raises:
        AdapterNotFoundError: there is no such adapter.
        CorruptWeightsError: it is damaged.
    """
    if models.scale is not None:
        return models.scale
    from llmdiff.adapter.adapter import LLMDiffAdapter
    from llmdiff.controller import adapter_source

    config, _ = LLMDiffAdapter.saved_config(adapter_source(models.adapter))
    return float(config.get("scale", 1.0))


def _load_controller(models: Models, *, device: str) -> "LLMController":
    import torch

    from llmdiff.controller import LLMController
    from llmdiff.language.llm import DecoderLLM

    _log.info("loading %s ...", models.adapter)
    _hide_loading_bars()
    how: dict[str, Any] = {
        "device": device,
        "dtype": getattr(torch, models.dtype),
        "trust_remote_code": models.trust_remote_code,
    }
    if models.llm is None:
        with _damage_named(f"adapter {models.adapter!r}"):
            return LLMController.from_pretrained(models.adapter, **how)
    with _damage_named(f"llm {models.llm!r}"):
        llm = DecoderLLM.from_pretrained(models.llm, **how)
    with _damage_named(f"adapter {models.adapter!r}"):
        # An LLM that was asked for by name is wanted, if only its sizes fit: a warning will do.
        return LLMController.from_pretrained(models.adapter, llm=llm, strict=False, device=device)


def usable_device(name: str | None) -> str:
    """Return the device's name after a trial; for None, the accelerator if there is one, else "cpu".

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if accelerator is None else accelerator.type
    try:
        torch.zeros(1, device=name).item()  # "meta" has no values
    except Exception as error:  # every device has its own kinds: ModuleNotFoundError, AssertionError, ...
        raise ConfigError(
            f'device {short(name)} is not to be had here ({first_line(error)}): leave it out, or use "cpu"'
        ) from error
    return name


def _hide_loading_bars() -> None:
    """Hide the bars of steps that take less than a second, where the libraries are to be quiet."""
    import diffusers
    import huggingface_hub.utils
    import transformers

    logs: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    if logs[0].get_verbosity() <= logging.WARNING:
        return
    downloads: Any = huggingface_hub.utils
    downloads_hidden = downloads.are_progress_bars_disabled()
    for log in logs:
        log.disable_progress_bar()
    # transformers turned off the bars of downloads as well, and those may take an hour.
    if not downloads_hidden:
        downloads.enable_progress_bars()


@contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Return a context in which a damaged safetensors file, wherever it is read, is one of our errors.

    A full disk, where the LLM's weights are converted and kept, is another one.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if "I/O error" in str(error):
            raise OutputError(
                f"{what}: weights cannot be written ({error}): make room on the disk, or set $LLMDIFF_HOME to a folder "
                "on another"
            ) from error
        raise CorruptWeightsError(
            f"{what} has a weight file that is truncated or damaged ({error}): download it again"
        ) from error
