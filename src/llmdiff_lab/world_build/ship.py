"""Writes what the package carries, in half precision: base pipeline, adapter, checker and the scenes' SigLIP."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.manifest import write_manifest_of_all
from llmdiff.errors import LLMDiffError
from llmdiff.evaluation.metrics.models import ImageTextModel
from llmdiff.evaluation.suites.scenes_check import SceneChecker
from llmdiff.evaluation.tables import markdown_table
from llmdiff.files import whole_folder
from llmdiff.openmoji.scenes import artwork_licence, artwork_version

MAX_SHIPPED_BYTES = 40_000_000

_CARD = """# OpenMoji scenes: LLMDiff's embedded default

A tiny Stable Diffusion of emoji scenes at {size} x {size} pixels, an LLMDiff adapter that puts {llm} in control of
it, and what scores its pictures. All of it was trained from nothing by
`llmdiff-lab build --preset {preset}` on scenes composed of OpenMoji drawings.

{parts}

- **For:** trying LLMDiff at once, on any machine, and measuring how well text encoders control a denoiser.
- **Not for:** making pictures of anything else. It knows {objects} objects, 6 shapes in 8 colours, 8 backgrounds,
  counts up to four and four relations; nothing beyond.
- **Artwork:** all emojis designed by OpenMoji, the open-source emoji and icon project (version {artwork}), licence
  CC BY-SA 4.0. These weights are derived from that artwork and are given under CC BY-SA 4.0 too.
- **LLM:** {llm} is not part of this folder; it is frozen and unchanged.
"""


def ship(
    pipe: StableDiffusionPipeline,
    adapter: LLMDiffAdapter,
    checker: SceneChecker,
    folder: Path,
    *,
    preset: Any,
    siglip: ImageTextModel | None = None,
) -> int:
    """Write pipeline, adapter, checker, siglip if given, card and licence into `folder`; returns the bytes written.

    Raises:
        LLMDiffError: the weights are larger than a package may carry; nothing is written then.
    """
    with whole_folder(folder) as partial:
        pipe.to(torch.float16).save_pretrained(partial / "pipeline")
        adapter.save_pretrained(partial / "adapter", dtype=torch.float16)
        checker.save_pretrained(partial / "checker")
        if siglip is not None:
            siglip.model.half()
            siglip.save_pretrained(partial / "siglip")
        forget_local_paths(partial / "pipeline")
        for part in ("pipeline", "checker", "siglip"):
            if (partial / part).is_dir():
                write_manifest_of_all(partial / part)
        (partial / "README.md").write_text(_card(pipe, adapter, checker, siglip, preset))
        # The weights are derived from OpenMoji's drawings, so its licence is theirs too.
        (partial / "LICENSE").write_text(artwork_licence())
        size = sum(path.stat().st_size for path in partial.rglob("*.safetensors"))
        if size > MAX_SHIPPED_BYTES:
            raise LLMDiffError(f"the weights take {size:,} bytes, a package may carry {MAX_SHIPPED_BYTES:,}")
    return size


def _card(
    pipe: StableDiffusionPipeline,
    adapter: LLMDiffAdapter,
    checker: SceneChecker,
    siglip: ImageTextModel | None,
    preset: Any,
) -> str:
    parts: dict[str, tuple[str, Any]] = {
        "pipeline/unet": ("denoiser, v-prediction with zero terminal SNR", pipe.unet),
        "pipeline/text_encoder": ("CLIP-style text encoder, trained on the same captions", pipe.text_encoder),
        "pipeline/vae": ("autoencoder", pipe.vae),
        "adapter": ("LLMDiff adapter", adapter),
        "checker": ("detector of things in scenes, for scoring", checker),
    }
    if siglip is not None:
        parts["siglip"] = ("SigLIP of scenes and captions, for scoring", siglip.model)
    rows = [
        [name, what, f"{sum(p.numel() for p in module.parameters()):,}"]
        for name, (what, module) in parts.items()
    ]
    return _CARD.format(
        size=preset.image_size_px,
        llm=adapter.config.llm_id,
        preset=preset.name,
        parts=markdown_table([["part", "what it is", "parameters"], *rows], left=2),
        objects=preset.objects,
        artwork=artwork_version(),
    )


def forget_local_paths(folder: Path) -> None:
    """Remove the folder that configs were loaded from."""
    for path in folder.rglob("*.json"):
        if path.name not in ("config.json", "model_index.json"):
            continue
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
