"""Rewrite captions in plain words that the base's own text encoder knows, with a closed or an open LLM.

The result is a file of captions with both wordings, see `training.captions`, for people to check and correct.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from llmdiff.errors import ClosedLLMError, InputFileError, OutputError
from llmdiff.files import check_replaceable, not_writable, read_text, text_lines, write_whole
from llmdiff.language.chat_completions import checked_answer
from llmdiff.language.closed_llm import DESCRIBE
from llmdiff.language.llm import DecoderLLM

_MAX_BYTES = 2**32
_MAX_CHARACTERS = 400
_MOST_NEW_TOKENS = 96
_GIVE_UP_AFTER = 5  # failures in a row: an address that is down, a model that cannot do it

_log = logging.getLogger(__name__)


Rewords = Callable[[str], str]
"""A caption => one plain sentence; raises ClosedLLMError if there is no usable one."""


def reword_captions(captions: Sequence[str], make: Callable[[], Rewords], out: Path) -> tuple[int, int]:
    """Append a line with `text` and `plain` to `out`, a .jsonl file, for each caption that it lacks.

    Returns the number of lines in the file and the number of captions without usable plain wording. These are left
    out, and requested again in the next run. `make` is called only if a caption is missing.

    Raises:
        ClosedLLMError: several captions in a row failed.
        InputFileError: `out` has other content.
        OutputError: `out` cannot be written.
    """
    if out.suffix != ".jsonl":
        raise OutputError(f"out {out} ends in {out.suffix!r}, expected a name that ends in .jsonl")
    known = _known(out) if out.exists() else {}
    missing = [text for text in dict.fromkeys(captions) if text not in known]
    reword = make() if missing else None
    failed = in_a_row = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            for text in tqdm(missing, desc="rewording", mininterval=2):
                assert reword is not None
                try:
                    plain = reword(text)
                except ClosedLLMError as error:
                    failed, in_a_row = failed + 1, in_a_row + 1
                    _log.warning("no plain wording of %.60r: %s", text, error)
                    if in_a_row == _GIVE_UP_AFTER:
                        raise
                    continue
                in_a_row, known[text] = 0, plain
                file.write(json.dumps({"text": text, "plain": plain}, ensure_ascii=False) + "\n")
                file.flush()
    except OSError as error:
        raise not_writable(out, error) from error
    return len(known), failed


def llm_rewords(llm: DecoderLLM) -> Rewords:
    """Return a function that rewords captions with an open LLM, by greedy decoding and in its chat format if any."""
    tokenizer: Any = llm.tokenizer

    @torch.no_grad()
    def reword(caption: str) -> str:
        asked = f"{DESCRIBE}\n\nDescription: {caption}"
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": asked}]
            asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        else:
            asked = f"{asked}\nSentence:"
        encoded = tokenizer(asked, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
        ids = encoded["input_ids"].to(llm.device)
        made = llm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_MOST_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else tokenizer.eos_token_id,
        )
        answer = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        # A base model continues after its sentence.
        lines = text_lines(answer.strip())
        return checked_answer(lines[0] if lines else "", _MAX_CHARACTERS)

    return reword


def _known(out: Path) -> dict[str, str]:
    """Return the captions and plain wordings in the file, and remove an incomplete last line from it."""
    check_replaceable(out)
    content = read_text(out, max_bytes=_MAX_BYTES)
    whole, end, _ = content.rpartition("\n")
    if whole + end != content:
        write_whole(out, whole + end)
    known: dict[str, str] = {}
    for number, line in enumerate(text_lines(whole + end), 1):
        try:
            found = json.loads(line)
            known[found["text"]] = found["plain"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputFileError(
                f"out {out}, line {number} is not a caption with its plain wording: correct the line, or use another "
                "file"
            ) from error
    return known
