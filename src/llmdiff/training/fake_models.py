"""Create the models of a training on fake tensors from their config files, inside a `FakeTensorMode`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from llmdiff.adapter import families, layers
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import EMBEDDED_NAME, model_class, packaged
from llmdiff.controller import adapter_source
from llmdiff.errors import (
    AdapterNotFoundError,
    LLMDiffError,
    LLMNotFoundError,
    PipelineNotFoundError,
    UnsupportedPipelineError,
    first_line,
)
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.gguf import gguf_llm_folder
from llmdiff.language.packaged import PACKAGED, packaged_llm_folder
from llmdiff.language.support import check_supported, model_kind
from llmdiff.training.config import ModelsConfig
from llmdiff.training.denoise import check_trainable


@dataclass(frozen=True, kw_only=True)
class FakeModels:
    """The models of a training.

    Fields:
        llm: the causal language model; pipe: a pipeline with its denoiser and VAE, and nothing else in it.
        others: the pipeline's further models by name: text encoders, safety checker.
    """

    llm: Any
    pipe: Any
    others: Mapping[str, nn.Module]
    adapter: LLMDiffAdapter

    @property
    def context(self) -> ContextEncoding:
        """Return the adapter's weighted sum over the LLM's blocks."""
        assert self.adapter.context is not None
        return self.adapter.context

    @property
    def family(self) -> families.Family:
        """Return the family of the base."""
        return families.family_of(self.pipe)

    @property
    def denoiser(self) -> Any:
        """Return the base's U-Net or transformer."""
        return families.denoiser_of(self.pipe)


def fake_models(models: ModelsConfig, dtype: torch.dtype) -> FakeModels:
    """Return the models of a training; LLM and base in `dtype`, the adapter in float32.

    Only config files are read or downloaded: `config.json` of an LLM; `model_index.json` and each part's `config.json`
    of a base.

    Raises:
        LLMNotFoundError, PipelineNotFoundError, AdapterNotFoundError: a config cannot be found.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # fake parameters cannot be converted afterwards
    try:
        llm = _llm(models.llm)
        pipe, others = _pipeline(models.base)
    finally:
        torch.set_default_dtype(usual)
    denoiser: Any = families.denoiser_of(pipe)
    for module in (llm, denoiser, pipe.vae, *others.values()):
        module.requires_grad_(False).eval()
    return FakeModels(llm=llm, pipe=pipe, others=others, adapter=_adapter(models, llm, pipe).train())


@contextmanager
def _reading(error: type[LLMDiffError], what: str, files: str, setting: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as cause:
        raise error(
            f"the {what} cannot be found ({first_line(cause)}): pass a folder with {files} instead, {setting}=FOLDER"
        ) from cause


def _llm(name: str) -> Any:
    source: str | Path = name
    if name in PACKAGED:
        folder = PACKAGED[name].folder
        source = folder if (folder / "config.json").is_file() else packaged_llm_folder(name)
    elif name.endswith(".gguf"):
        source = gguf_llm_folder(Path(name))
    with _reading(LLMNotFoundError, f"config of llm {name!r}", "its config.json", "models.llm"):
        config = AutoConfig.from_pretrained(source)
    check_supported(config, id=name)
    with no_init_weights():
        model: Any = model_kind(config).from_config(config, dtype=torch.get_default_dtype())
    model.tie_weights()  # count a shared embedding and head once
    return model


def _pipeline(base: str) -> tuple[Any, dict[str, nn.Module]]:
    import diffusers

    source = str(packaged("pipeline", PipelineNotFoundError)) if base == EMBEDDED_NAME else base
    pipeline: Any = diffusers.DiffusionPipeline
    files = "model_index.json and each part's config.json"
    with _reading(PipelineNotFoundError, f"configs of base {base!r}", files, "models.base"):
        index = dict(pipeline.load_config(source))
        configs = {name: _config(source, name, entry) for name, entry in index.items()}
    class_name = str(index["_class_name"])
    kind: Any = getattr(diffusers, class_name, None)
    if kind is None:
        raise UnsupportedPipelineError(f"base {base!r} is a {class_name}, which diffusers does not have")
    models = {name: _built(*found) for name, found in configs.items() if found is not None}
    pipe = kind.__new__(kind)  # only its class and these parts are used
    inside = {name: model for name, model in models.items() if name in ("unet", "transformer", "vae")}
    vars(pipe).update(inside)
    check_trainable(pipe)
    return pipe, {name: model for name, model in models.items() if name not in inside}


def _config(source: str, name: str, entry: Any) -> tuple[Any, Any] | None:
    """Return the class and the config of a pipeline's part; None if it is no model."""
    if name.startswith("_") or not isinstance(entry, list | tuple) or entry[0] is None:
        return None
    kind = model_class(*entry)
    if kind is None:
        return None  # schedulers and tokenizers have no weights
    if issubclass(kind, PreTrainedModel):
        return kind, kind.config_class.from_pretrained(source, subfolder=name)
    return kind, dict(kind.load_config(source, subfolder=name))


def _built(kind: Any, config: Any) -> Any:
    if issubclass(kind, PreTrainedModel):
        with no_init_weights():
            return kind(config)
    return kind.from_config(config)


def _adapter(models: ModelsConfig, llm: Any, pipe: Any) -> LLMDiffAdapter:
    make: Any = LLMDiffAdapter
    if models.start is not None:
        source = str(adapter_source(models.start))
        what = f"config of adapter {models.start!r}"
        with _reading(AdapterNotFoundError, what, "its config.json", "models.start"):
            found = dict(make.load_config(source))
        return models.continued(
            make(**{name: value for name, value in found.items() if not name.startswith("_")})
        )
    family, denoiser = families.family_of(pipe), families.denoiser_of(pipe)
    text = llm.config.get_text_config(decoder=True)
    adapter: LLMDiffAdapter = make(
        llm_id=models.llm,
        num_blocks=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        family=family.name,
        base_model_id=models.base,
        text_width=families.text_width(denoiser, family),
        pooled_width=families.pooled_width(denoiser, family),
        cross_attention=layers.layer_table(denoiser),
        **models.fields_for(text.hidden_size),
    )
    return adapter
