"""The model card of an adapter: the README.md that goes to the Hub with it."""

import re
from pathlib import Path
from typing import Any

from llmdiff.adapter import families
from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.language.packaged import PACKAGED

_PAPER = "https://arxiv.org/abs/2502.04412"
_UNKNOWN_HISTORY = (
    "This card was generated with the adapter's files. It knows neither the data nor the results: the author may add "
    "them here."
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")
# owner/name, owner/name/file.gguf, and the Hub's old names without an owner.
_PUBLIC = re.compile(r"[\w.-]+(/[\w.-]+){0,2}\Z")
_PACKAGED = ("openmoji", *PACKAGED)


def adapter_card(
    adapter: LLMDiffAdapter, *, repo_id: str, license: str | None = None, history: str | None = None
) -> str:
    """Return the card in Markdown, with the Hub's metadata at its top.

    The card is generated from the adapter's config and weights; it leaves training data and results to the author.
    Names of local folders are omitted. `license` is an identifier of the Hub such as "apache-2.0"; None omits it.
    `history` says how the adapter was made, where that is known.
    """
    from huggingface_hub import ModelCardData

    config: Any = adapter.config
    llm, base = source_name(config.llm_id), source_name(config.base_model_id)
    family = families.family_named(config.family).title
    models = [
        name for name in (config.base_model_id, config.llm_id) if _HUB_ID.match(name) and not is_local(name)
    ]
    data: Any = ModelCardData(
        library_name="llmdiff",
        pipeline_tag="text-to-image",
        tags=["llmdiff", "diffusers", "text-to-image", "adapter"],
        base_model=models or None,
        license=license,
    )
    routing = f"{config.routing}, {config.routing_form}"
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    rows = [
        ("LLM", llm),
        ("its blocks, their width", f"{config.num_blocks}, {config.hidden_size}"),
        ("diffusion pipeline", base),
        ("family", family),
        ("layers with a second branch", str(len(adapter.branches))),
        ("parameters", f"{parameters:,}"),
        ("text encoding", f"`{config.encoding}`, alone means `{config.lone}`"),
        ("groups of layers with gains of their own", "none" if config.routing == 1 else routing),
        ("refiner", _refiner(adapter)),
        ("template", f"`{config.template!r}`" if config.template else "none"),
        ("default scale", f"{config.scale:g} (1: the LLM alone)"),
        ("longest prompt", f"{config.max_length} tokens"),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    title = repo_id.rpartition("/")[2]
    return f"""---
{data.to_yaml().strip()}
---

# {title}

An LLMDiff adapter: it lets the decoder-only LLM {llm} control a {family} pipeline ({base}) in place of the pipeline's own text encoder. The LLM and the pipeline stay as they are and are not part of this repository.

## Use

```bash
pip install llmdiff-adapter
```

```python
from llmdiff import LLMController

controller = LLMController.from_pretrained("{repo_id}")
pipe = controller.load_pipeline()
with controller.attached(pipe):
    pipe("a cat to the left of a red car").images[0].save("cat.png")
```
{_local_note(config)}
## What it is

| | |
|---|---|
{table}

Method: Dong, Xiao, Wei and Lin, *Decoder-Only LLMs are Better Controllers for Diffusion Models*, ACM MM 2024, [arXiv 2502.04412]({_PAPER}). The weights are safetensors; `manifest.json` holds their SHA-256, checked at every load.

## Training and results

{history or _UNKNOWN_HISTORY}

## Limits

The adapter fits this LLM and pipelines of this family and width only; both are checked when it is attached. What the LLM and the base pipeline get wrong, and their licences, carry over to the pictures.
"""  # noqa: E501 (sentences of the card are not wrapped)


def is_local(name: str) -> bool:
    """Return whether a model's name is a local path, which others cannot load.

    All other names are Hub ids, names of packaged models, or "" for none.
    """
    if not name or name in _PACKAGED:
        return False
    if not _PUBLIC.match(name) or name.startswith("."):
        return True
    gguf = name.endswith(".gguf")
    # A name that is both a local folder and a Hub id was loaded from the folder.
    return gguf != (name.count("/") == 2) or Path(name).exists()


def source_name(name: str) -> str:
    """Return where a model comes from, without local paths."""
    if not name:
        return "not named"
    if is_local(name):
        return "a local folder, not at the Hub"
    return f"[{name}](https://huggingface.co/{name})" if _HUB_ID.match(name) else f"`{name}`"


def _local_note(config: Any) -> str:
    named = (("llm", config.llm_id), ("base", config.base_model_id))
    local = [what for what, name in named if not name or is_local(name)]
    if not local:
        return ""
    notes = {
        "llm": "Its LLM is not at the Hub: load it yourself and pass `llm=DecoderLLM.from_pretrained(folder)`.",
        "base": "Its base pipeline is not at the Hub: load it yourself and pass it to `controller.attached`.",
    }
    return "\n" + " ".join(notes[what] for what in local) + "\n"


def _refiner(adapter: LLMDiffAdapter) -> str:
    if adapter.refiner is None:
        return "none: the paper's form"
    config: Any = adapter.config
    return f"{config.refiner_layers} layers of width {adapter.refiner.to_inside.out_features}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")
