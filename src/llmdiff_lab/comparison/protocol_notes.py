"""Notes on the protocol of a benchmark for its report: equal treatment of systems, and exceptions."""

from llmdiff_lab.comparison.settings import BenchmarkSettings
from llmdiff_lab.world_build.presets import find_preset

_PRECISIONS = {
    "no": "All is computed in float32.",
    "bf16": "The LLM and the trainings compute in bfloat16; trained weights and pictures are float32.",
}


def protocol_notes(settings: BenchmarkSettings) -> list[str]:
    """Return the notes, one string each."""
    return [
        _training(settings),
        _readers(settings),
        "The base's denoiser, its text encoder and the readers of the prompts are frozen, but for LaVi-Bridge, whose "
        "LoRA changes denoiser and LLM, mlp-denoiser-lora, refined-lora and refined-wide-lora, which have it in the "
        "denoiser, and refined-llm-lora, which has it in the LLM, behind what stands before every prompt "
        "(refined-both-lora has both). LLM4GEN and per-block injection were published with a trained denoiser, "
        "LLM4GEN also with a loss on entities; here it is frozen for them as for ours, and llm4gen-lora has LoRA in "
        "it. What is trained, and how much of it, is in the table of costs.",
        "Optimiser (AdamW, with Muon for matrices inside a trained part), schedule, weight decay, clipping and the "
        "average of the weights are the same. Every stage warms up for at most a tenth of its steps, then decays to "
        "zero.",
        "LoRA is LaVi-Bridge's: rank 32, A with standard deviation 1/32, dropout of 0.1 behind B, and in the LLM a "
        "twentieth of the learning rate. LaVi-Bridge was published without caption dropout; here a tenth of all "
        "captions is dropped for every rival, as guidance draws with the empty caption. In steps from captions alone "
        "only text attention runs, so of LoRA in the denoiser the layers outside it learn on pictures only.",
        *_rates(settings),
        *_longer(settings),
        "All that reads the LLM reads it under the same template. It was chosen for ours and for the LLM's last layer "
        "(speed/templates.py), not for each rival anew.",
        _drawing(settings),
        "base-longer trains the base's own denoiser and text encoder instead, as the base was trained, for as many "
        "steps of as many captions, in the same wording, drawn from all the build's scenes; all its steps are on "
        "pictures.",
    ]


def _training(settings: BenchmarkSettings) -> str:
    first, alike = f"{settings.steps} steps", ""
    if settings.text_steps:
        first = (
            f"{settings.text_steps} steps from captions alone, where it learns what the base's own text encoder gives "
            f"its attention layers for the plain wording, then {settings.steps} steps on pictures, each"
        )
        alike = "; in a step on pictures all see the same captions, pictures and noise"
    return (
        f"Every rival is trained for {first} of {settings.batch} captions, on the same {settings.captions} captions "
        f"and their scenes{alike}. {_PRECISIONS[settings.precision]}"
    )


def _drawing(settings: BenchmarkSettings) -> str:
    seeds = (
        "seeds differ in the random weights at the start, and in the order of the captions and the noise of the "
        "training."
    )
    if not settings.guidance_scales:
        return (
            "Pictures: the same prompts, noise, number of denoising steps and guidance for every system and seed; "
            f"{seeds}"
        )
    scales = ", ".join(f"{scale:g}" for scale in settings.guidance_scales)
    return (
        "Pictures: the same prompts, noise and number of denoising steps for every system and seed. Guidance is each "
        f"system's own: of {scales} the one at which its first seed drew most of {settings.validation_prompts} prompts "
        f"of every split right that are not among these; {seeds}"
    )


def _longer(settings: BenchmarkSettings) -> list[str]:
    longer = [name for name in settings.rivals if settings.system(name).steps != 1]
    if not longer:
        return []
    return [
        f"Not alike in steps: {', '.join(longer)}. Each has more or fewer steps of every kind than its rival, as its "
        "title says, at the rival's learning rate, on the same captions; it is there to compare at equal seconds."
    ]


def _readers(settings: BenchmarkSettings) -> str:
    steps = settings.text_steps or settings.steps
    kind = "steps from captions" if settings.text_steps else "steps"
    return (
        f"Those that learn weights for every block of their reader do so in the first {settings.gain_steps} of the "
        f"{steps} {kind}, on at most 1,500 of the captions, whose block states fit into memory; the rest, on all "
        "captions, is a stage with a warm-up and a schedule of its own. All others have one such stage."
    )


def _rates(settings: BenchmarkSettings) -> list[str]:
    preset = find_preset(settings.preset)
    rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
    rest = (
        f"These are the rates of matrices and vectors; gates, gains and layer weights learn at "
        f"{preset.adapter_scalar_lr:g} in every rival, whatever rate it has."
    )
    if settings.text_steps:
        rest += f" On pictures every rate is {preset.adapter_lr_share_after_text:g} of itself."
    if len(settings.learning_rates) == 1:
        return [f"No learning rate was searched for: all use {rates}.", rest]
    tried = f"{settings.search_steps} steps"
    if settings.text_steps:
        from_text = round(settings.text_steps * settings.search_steps / settings.steps)
        tried = f"{from_text} steps from captions and {settings.search_steps} on pictures"
    return [
        f"Each rival tried the learning rates {rates}, with {tried} each and the first seed; the lowest loss on scenes "
        "that none is trained on decided. Where the lowest or the highest rate won, the search went on by the same "
        "factor until the best was between others. Short trainings favour high rates: where the highest of these or a "
        "higher one won, the next lower one was also trained in full, and taken where its loss was lower by more than "
        "0.001. base-longer has the rate that the base was trained with.",
        rest,
    ]
