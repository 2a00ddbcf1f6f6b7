"""Encode prompts into files, from which pictures are drawn without the LLM: the work of `llmdiff encode`."""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from llmdiff.drawing.models import Models, load_controller, usable_device
from llmdiff.errors import PromptError
from llmdiff.files import clean_text, is_blank, writable_folder

# torch, transformers and diffusers are imported inside functions, as their import takes seconds.


def encode_prompts(
    prompts: Sequence[str], negative_prompt: str, models: Models, out: Path, *, batch: int = 16
) -> Iterator[Path]:
    """Encode prompts and the negative prompt that are not in the folder yet, and yield the paths as they are written.

    Raises:
        PromptError: there are no prompts, or one is not valid.
        OutputError: the folder cannot be written; checked before any model is loaded.
        ConfigError: the folder has encodings of another adapter, LLM, dtype or setting.
        LLMDiffError: a model cannot be loaded.
    """
    texts = [clean_text("prompt", text) for text in prompts if not is_blank(text)]
    if not texts:
        raise PromptError("prompts is empty, expected one prompt a line")
    texts.append(clean_text("negative_prompt", negative_prompt))
    writable_folder(out)
    controller = load_controller(models, device=usable_device(models.device))

    from llmdiff.language.saved_encodings import SavedEncodings, has_encodings, origin_of

    kept: Container[str] = ()
    if has_encodings(out):
        kept = saved = SavedEncodings.load(out)
        saved.check_origin(origin_of(controller.llm, controller.adapter, weighted=models.weighted))
    missing = sorted({text for text in texts if text not in kept}, key=lambda text: (len(text), text))
    for start in range(0, len(missing), batch):  # similar lengths together: less padding to compute
        part = controller.encode(missing[start : start + batch], weighted=models.weighted)
        yield from part.save(out)
