"""What diffusers' own features do on an attached pipeline of each family; `test_features.py` holds it against them."""

from collections.abc import Mapping

from llmdiff.adapter.families import FAMILIES

# Families whose denoiser does not have a feature in diffusers.
_LACKS: Mapping[str, tuple[str, ...]] = {
    "attention backend": (),
    "fused projections": ("sd3", "latte", "cogview4", "lumina2", "z-image"),
    "layerwise casting": (),
    "group offloading": (),
    "bfloat16": (),
    "LoRA in the denoiser": ("pixart", "latte"),
    "VAE slicing": (),
    "`torch.compile`": (),
    # Their denoisers read how long each text is from the values of its mask.
    "`torch.compile(fullgraph=True)`": ("hunyuan-image", "lumina2"),
}
OUTCOMES: Mapping[str, Mapping[str, str]] = {
    feature: {family.name: "-" if family.name in lacks else "yes" for family in FAMILIES}
    for feature, lacks in _LACKS.items()
}
