"""Write the packaged weights in half precision: the base pipeline, and adapter and checker if built."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.base_pipeline import EMBEDDED_NAME
from llmdiff.adapter.manifest import write_manifest_of_all
from llmdiff.errors import LLMDiffError
from llmdiff.evaluation.tables import markdown_table
from llmdiff.files import whole_folder
from llmdiff.world.artwork import artwork_licence, artwork_version
from llmdiff.world.packaged import save_world
from llmdiff.world.places import places
from llmdiff.world.things import BACKGROUNDS, COLOURS
from llmdiff_lab.world_build.presets import Preset

MAX_SHIPPED_BYTES = 96_000_000
_WHAT = {
    "pipeline/unet": "denoiser, v-prediction with zero terminal SNR",
    "pipeline/text_encoder": "CLIP-style text encoder, trained on the same captions",
    "pipeline/vae": "autoencoder",
    "adapter": "LLMDiff adapter",
    "checker": "reads pictures back, for scoring",
    "siglip": "SigLIP of scenes and captions, for scoring",
}
_FLUENT = """- **3D drawings:** Fluent Emoji by Microsoft, from the npm package `@lobehub/fluent-emoji-3d`, whose
  package.json says MIT.
"""
_CARD = """# LLMDiff's embedded default

A small Stable Diffusion of scenes at {size} x {size} pixels and what belongs to it. All of it was trained from
nothing by `llmdiff-lab build --preset {preset}` on scenes composed of OpenMoji drawings.

{parts}

- **For:** trying LLMDiff at once, on any machine, and measuring how well text encoders control a denoiser.
- **Not for:** making pictures of anything else. It knows {things} things ({actions} of them people doing something),
  {colours} colours, {backgrounds} backgrounds, {places} places and {styles} ({style_names}); nothing beyond.
  `llmdiff world` lists them.
- **Artwork:** all emojis designed by OpenMoji, the open-source emoji and icon project (version {artwork}), licence
  CC BY-SA 4.0. These weights are derived from that artwork and are given under CC BY-SA 4.0 too.
{fluent}"""


def ship(pipe: StableDiffusionPipeline, build: Path, folder: Path, preset: Preset) -> int:
    """Write pipeline, card, licence and other models of the build to `folder` and return the bytes of all weights.

    Raises:
        LLMDiffError: the weights are too large for the package; nothing is written then.
    """
    with whole_folder(folder) as partial:
        pipe.to(torch.float16).save_pretrained(partial / "pipeline")
        save_world(preset.world, partial / "pipeline")
        if (build / "adapter" / "model").is_dir():
            adapter: Any = LLMDiffAdapter.from_pretrained(build / "adapter" / "model")
            adapter.register_to_config(base_model_id=EMBEDDED_NAME)
            adapter.save_pretrained(partial / "adapter", dtype=torch.float16)
        for part in ("checker", "siglip"):
            if (build / part / "model").is_dir():
                shutil.copytree(build / part / "model", partial / part)
        _forget_local_paths(partial / "pipeline")
        for part in ("pipeline", "checker", "siglip"):
            if (partial / part).is_dir():
                write_manifest_of_all(partial / part)
        sizes = {
            str(path.parent.relative_to(partial)): _number_count(path)
            for path in partial.rglob("*.safetensors")
        }
        (partial / "README.md").write_text(_card(sizes, preset), encoding="utf-8")
        # The weights are derived from OpenMoji's drawings and have the same licence.
        (partial / "LICENSE").write_text(artwork_licence(), encoding="utf-8")
        size = sum(path.stat().st_size for path in partial.rglob("*.safetensors"))
        if size > MAX_SHIPPED_BYTES:
            raise LLMDiffError(f"the weights take {size:,} bytes, a package may carry {MAX_SHIPPED_BYTES:,}")
    return size


def _card(sizes: dict[str, int], preset: Preset) -> str:
    things = preset.world.things
    rows = [[name, _WHAT[name], f"{count:,}"] for name, count in sorted(sizes.items())]
    return _CARD.format(
        size=preset.image_size_px,
        preset=preset.name,
        parts=markdown_table([["part", "what it is", "parameters"], *rows], left=2),
        things=len(things),
        actions=sum(thing.is_action for thing in things),
        colours=len(COLOURS),
        backgrounds=len(BACKGROUNDS),
        places=len(places()),
        styles=f"{len(preset.styles)} styles",
        style_names=", ".join(preset.styles),
        artwork=artwork_version(),
        fluent=_FLUENT if "3d" in preset.styles else "",
    )


def _number_count(path: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(path).values())


def _forget_local_paths(folder: Path) -> None:
    """Remove the folder that configs were loaded from."""
    for path in folder.rglob("*.json"):
        if path.name not in ("config.json", "model_index.json"):
            continue
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
