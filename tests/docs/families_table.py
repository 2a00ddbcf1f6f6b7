"""The tables of families and of what is tested with each: `python tests/docs/families_table.py` writes them."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where this is run as a command

from tiny.every_pipeline import ACCEPTED

from docs.features import OUTCOMES
from docs.kinds_table import Check
from docs.written import markdown_table, write
from llmdiff.adapter.families import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "pipelines.md"
TESTED = ROOT / "docs" / "reference" / "pipelines-tested.md"

_EVERY = tuple(family.name for family in FAMILIES)
_UNETS = ("sd", "sdxl")
# Families whose text encoders diffusers loads LoRA into, and those with an IP-Adapter beside the U-Nets.
_TEXT_LORA = (*_UNETS, "sd3", "flux", "chroma")
_JOINT_IP_ADAPTERS = ("sd3", "flux", "chroma")

# Trained weights that the tests load, and families whose tests have passed on an accelerator.
REAL_WEIGHTS: Mapping[str, str] = {"sd": "the embedded default"}
ON_ACCELERATOR: tuple[str, ...] = ("sd", "sdxl", "pixart", "sana", "sd3", "flux")

_CHANNELS = {
    "states": "two branches",
    "projected": "two branches, behind the text projection",
    "joint": "joint attention",
}


@dataclass(frozen=True, kw_only=True)
class FamilyCheck(Check):
    """One row of the matrix: the test in `tests/llmdiff/adapter/` that fills it, and the families it is run for.

    `others` says of each other family what is known.
    """

    families: tuple[str, ...] = _EVERY
    others: Callable[[str], str] = lambda family: "not tested"


def _with_controlnet(family: str) -> str:
    return (
        "drawn with"
        if any("ControlNet" in name for name in ACCEPTED[family])
        else "not in diffusers, or refused"
    )


def _feature(feature: str, what: str) -> Callable[[str], str]:
    """Return what the table of features knows of a family."""
    return lambda family: what if OUTCOMES[feature][family] == "yes" else "not in diffusers"


CHECKS: tuple[FamilyCheck, ...] = (
    FamilyCheck(
        title="attach, draw, detach",
        what="the same objects and the same bits as before",
        module="test_family_matrix",
        test="test_attach_draw_detach_restores_objects_and_bits",
    ),
    FamilyCheck(
        title="save, load",
        what="a saved adapter draws the same",
        module="test_family_matrix",
        test="test_a_saved_adapter_draws_the_same",
    ),
    FamilyCheck(
        title="guidance",
        what="positive and negative prompts of different lengths, alone and in a batch",
        module="test_family_matrix",
        test="test_guidance_with_prompts_of_different_lengths",
    ),
    FamilyCheck(
        title="several images",
        what="`num_images_per_prompt` above 1, for prompts of different lengths",
        module="test_family_matrix",
        test="test_several_images_per_prompt",
    ),
    FamilyCheck(
        title="padding",
        what="a prompt beside a longer one gives the same picture as alone (1e-3)",
        module="test_family_matrix",
        test="test_padding_never_changes_a_picture",
    ),
    FamilyCheck(
        title="scale",
        what="from 0, the base bit for bit, to 1 without a step, with and without the base's text",
        module="test_family_matrix",
        test="test_the_scale_sweeps_from_the_base_to_the_llm",
    ),
    FamilyCheck(
        title="`keep_base_text`",
        what="the base's tokens count, and their padding does not; refused by name where text rows have positions",
        module="test_family_matrix",
        test="test_kept_base_text_is_read_and_never_padded_into_a_picture",
    ),
    FamilyCheck(
        title="prompt weights",
        what="`(word:1.3)` where asked for; weight 1 changes no bit",
        module="test_weighted",
        test="test_a_weight_changes_the_picture_and_weight_one_does_not",
    ),
    FamilyCheck(
        title="gradients",
        what="reach every parameter of the adapter and no other",
        module="test_family_matrix",
        test="test_gradients_reach_the_adapter_and_nothing_else",
    ),
    FamilyCheck(
        title="deep copies",
        what="are attached on their own",
        module="test_family_matrix",
        test="test_deep_copies_are_attached_on_their_own",
    ),
    FamilyCheck(
        title="shared denoiser",
        what="a pipeline that only shares it refuses to draw until it is attached too",
        module="test_family_matrix",
        test="test_a_pipeline_that_only_shares_the_denoiser_does_not_draw_the_base",
    ),
    FamilyCheck(
        title="every pipeline",
        what="each pipeline class draws, and draws the base again once detached",
        module="test_pipelines_of_families",
        test="test_the_pipeline_draws",
    ),
    FamilyCheck(
        title="schedulers",
        what="those that its pipelines take (U-Nets: all that diffusers calls interchangeable, and few-step ones)",
        module="test_running",
        test="test_every_scheduler",
    ),
    FamilyCheck(
        title="`enable_model_cpu_offload`",
        what="before and after attaching (on a CPU: the hooks are there, nothing moves)",
        module="test_running",
        test="test_model_offload_and_attach_in_any_order",
    ),
    FamilyCheck(
        title="ControlNet",
        what="sees phi(c), padding masked; with image-to-image and inpainting too",
        module="test_companions",
        test="test_a_controlnet_sees_the_aligned_encoding_without_its_padding",
        families=_UNETS,
        others=_with_controlnet,
    ),
    FamilyCheck(
        title="LoRA",
        what="load, scale, fuse, unfuse, unload",
        module="test_companions",
        test="test_lora_load_fuse_and_unload",
        families=_UNETS,
        others=_feature("LoRA in the denoiser", "load"),
    ),
    FamilyCheck(
        title="LoRA of a text encoder",
        what="acts with `keep_base_text`, and only then",
        module="test_companions_of_families",
        test="test_lora_of_a_text_encoder_acts_with_the_base_text_only",
        families=_TEXT_LORA,
        others=lambda family: "not in diffusers",
    ),
    FamilyCheck(
        title="IP-Adapter",
        what="load, scale, unload, before and after attaching",
        module="test_companions",
        test="test_an_ip_adapter_on_top",
        families=_UNETS,
        others=lambda family: "load, scale" if family in _JOINT_IP_ADAPTERS else "not in diffusers",
    ),
    FamilyCheck(
        title="`callback_on_step_end`",
        what="reads and cuts the prompt's embeddings",
        module="test_companions",
        test="test_schedulers_and_callbacks",
        families=_UNETS,
        others=lambda family: "not in diffusers" if family == "pixart" else "reads and changes latents",
    ),
    FamilyCheck(
        title="attention slicing",
        what="on and off, before and while attached",
        module="test_running",
        test="test_attention_slicing_before_and_while_attached",
        families=_UNETS,
        others=lambda family: "not in diffusers",
    ),
    FamilyCheck(
        title="VAE slicing and tiling",
        what="the same picture; tiles as the VAE alone makes them",
        module="test_running",
        test="test_vae_slicing_and_tiling",
        families=_UNETS,
        others=_feature("VAE slicing", "slicing"),
    ),
    FamilyCheck(
        title="`torch.compile`",
        what="of the denoiser (backend aot_eager): with two adapters and with none",
        module="test_running",
        test="test_a_compiled_denoiser",
        families=_UNETS,
        others=_feature("`torch.compile`", "one adapter"),
    ),
    FamilyCheck(
        title="two adapters in turn",
        what="the first draws the same again after the second",
        module="test_running",
        test="test_two_adapters_in_turn",
    ),
    FamilyCheck(
        title="one LLM for several pipelines",
        what="every pipeline draws as it does alone",
        module="test_running",
        test="test_pipelines_share_an_llm",
    ),
)


def families_table() -> str:
    """Return the table of the families, one row each: how the LLM's text is read, and what has been run."""
    rows = (
        [
            family.title,
            _CHANNELS[family.text_channel] + (", pooled vector" if family.pooled_width else ""),
            "`llmdiff train`" if family.objective else "a loop of your own",
            REAL_WEIGHTS.get(family.name, "no"),
            "yes" if family.name in ON_ACCELERATOR else "no",
        ]
        for family in FAMILIES
    )
    return markdown_table(["family", "how the LLM's text is read", "training", "real weights", "GPU"], rows)


def classes_table() -> str:
    """Return the table of the pipeline classes of every family, and how many checks are run with it."""
    rows = (
        [
            family.title,
            ", ".join(name.removesuffix("Pipeline") for name in ACCEPTED[family.name]),
            f"{sum(family.name in check.families for check in CHECKS)} of {len(CHECKS)}",
        ]
        for family in FAMILIES
    )
    return markdown_table(["family", "pipelines", "checks"], rows)


def checks_table() -> str:
    """Return the table of the checks, with a column for every family."""
    header = ["check", "what holds", *(family.title for family in FAMILIES)]
    rows = (
        [
            check.title,
            check.what,
            *("yes" if name in check.families else check.others(name) for name in _EVERY),
        ]
        for check in CHECKS
    )
    return markdown_table(header, rows)


def features_table() -> str:
    """Return the table of diffusers' features, with a column for every family."""
    header = ["feature", *(family.title for family in FAMILIES)]
    rows = ([feature, *(found[name] for name in _EVERY)] for feature, found in OUTCOMES.items())
    return markdown_table(header, rows)


def parts() -> dict[Path, dict[str, str]]:
    """Return what each page has between its marks."""
    tested = {"classes": classes_table(), "features": features_table(), "checks": checks_table()}
    return {PAGE: {"families": families_table()}, TESTED: tested}


if __name__ == "__main__":
    for page, tables in parts().items():
        write(page, tables)
