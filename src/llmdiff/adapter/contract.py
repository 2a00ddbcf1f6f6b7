"""Read from a pipeline's source what its `encode_prompt` returns, so that variants of a pipeline need no table."""

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmdiff.errors import UnsupportedPipelineError

# The names of diffusers' variables, without "negative_".
_PARTS = {
    "prompt_embeds": ("positive", "negative"),
    "pooled_prompt_embeds": ("positive_pooled", "negative_pooled"),
    "prompt_attention_mask": ("positive_mask", "negative_mask"),
    "prompt_embeds_mask": ("positive_mask", "negative_mask"),
    "text_ids": ("positive_ids", "negative_ids"),
    "prompt_embeds_2": ("second", "second"),
    "prompt_embeds_mask_2": ("second_mask", "second_mask"),
}
# Arguments that mean nothing to the LLM's text, or are handled.
_KNOWN = re.compile(
    r"self|args|kwargs|device|dtype|batch_size|image|do_classifier_free_guidance|clean_caption|mask_feature|lora_scale"
    r"|clip_skip|system_prompt|complex_human_instruction|text_encoder_out_layers|(tokenizer_)?max_(sequence_)?length"
    r"|num_(images|videos)_per_prompt|(negative_)?(pooled_)?prompt(_embeds)?(_mask)?(_\d)?|(negative_)?prompt_attention_mask"
)


@dataclass(frozen=True, kw_only=True)
class PromptContract:
    """What a pipeline's `encode_prompt` takes and returns.

    Fields:
        returns: the parts of its result, in order: "positive", "negative", each also with "_pooled", "_mask" or "_ids";
            "second" and "second_mask".
        second_prompts: arguments for further text encoders, all replaced by the LLM.
        copies: the argument with the number of pictures per prompt; None if the pipeline repeats by itself.
        parameters: the names of all arguments.
    """

    returns: tuple[str, ...]
    second_prompts: tuple[str, ...]
    copies: str | None
    parameters: frozenset[str]

    @property
    def encodes_negative(self) -> bool:
        """Return whether one `encode_prompt` call encodes prompt and negative prompt; else each has its own call."""
        return "negative" in self.returns


@cache
def prompt_contract(kind: type) -> PromptContract:
    """Return what the `encode_prompt` of a pipeline class takes and returns.

    Raises:
        UnsupportedPipelineError: the class has no `encode_prompt`, or it returns something that has no
            counterpart in an LLM's text states.
    """
    refused = f"pipe is a {kind.__name__}, which LLMDiff cannot control"
    method: Any = getattr(kind, "encode_prompt", None)
    if method is None:
        raise UnsupportedPipelineError(
            f"{refused}: it has no encode_prompt, so there is no place for the LLM's text; use a text-to-image pipeline"
        )
    parameters = inspect.signature(method).parameters
    names = _returned_names(method)
    parts = [_part(name) for name in names]
    if "prompt" not in parameters or "positive" not in parts or None in parts:
        unknown = [name for name, part in zip(names, parts, strict=True) if part is None]
        what = f"returns {', '.join(unknown or names) or 'nothing that can be read'}"
        raise UnsupportedPipelineError(
            f"{refused}: its encode_prompt {what}, expected prompt_embeds, and beside them pooled embeddings, masks or "
            "text ids only; use another pipeline of these models"
        )
    foreign = [name for name in parameters if not _KNOWN.fullmatch(name)]
    if foreign:
        raise UnsupportedPipelineError(
            f"{refused}: its encode_prompt takes {', '.join(foreign)}, which an LLM's text has no counterpart of; use "
            "another pipeline of these models"
        )
    copies = [name for name in parameters if re.fullmatch(r"num_(images|videos)_per_prompt", name)]
    return PromptContract(
        returns=tuple(part for part in parts if part is not None),
        second_prompts=tuple(name for name in parameters if re.fullmatch(r"(negative_)?prompt_\d", name)),
        copies=copies[0] if copies else None,
        parameters=frozenset(parameters),
    )


def _part(name: str) -> str | None:
    negative, name = name.startswith("negative_"), name.removeprefix("negative_")
    found = _PARTS.get(name)
    return None if found is None else found[negative]


def _returned_names(method: Any) -> list[str]:
    """Return the names of the variables that a method's last `return` gives back."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):  # no source: defined in a shell, or compiled
        return []
    returns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    values = max(returns, key=lambda value: getattr(value, "lineno", 0), default=None)
    found = []
    for value in values.elts if isinstance(values, ast.Tuple) else [values]:
        if isinstance(value, ast.IfExp):
            value = value.body
        # "masked_": Latte's, without the rows of its padding.
        found.append(value.id.replace("masked_", "") if isinstance(value, ast.Name) else "?")
    return found
