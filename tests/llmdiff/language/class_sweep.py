"""Every causal language model that transformers has, built tiny, read, and compared with independent computations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from llmdiff.errors import UnsupportedLLMError
from llmdiff.language import DecoderLLM, run_blocks

from .conftest import PROMPTS, tiny_tokenizer
from .test_blocks import LONES, full_ids, kept_places, padded_left, real
from .tiny_configs import tiny_config_of, tiny_model_of
from .truth import assert_relative, lone_updates, own_updates

TEMPLATE = "{prompt}\nAgain: {prompt}"
# Relative errors in float32, by how tokens alone are read: hybrids and recurrent models as texts of their own.
TOLERANCE = {"cached": 5e-5, "masked": 5e-5, "sequences": 1e-5}
ROW = 3  # shorter than the batch


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """How a class is read, or why not."""

    name: str
    result: Literal["exact", "refused", "not built", "wrong"]
    how: str


def sweep(kinds: Iterable[type[Any]]) -> Iterator[SweepRow]:
    """Build a tiny model of every configuration class and read it."""
    for kind in kinds:
        name = kind.__name__
        try:
            model = tiny_model_of(tiny_config_of(kind))
        except Exception as error:  # a configuration whose values do not go together
            lines = str(error).strip().splitlines() or [type(error).__name__]
            yield SweepRow(name=name, result="not built", how=lines[-1].strip())
            continue
        try:
            yield read(model, name)
        except Exception as error:
            yield SweepRow(name=name, result="wrong", how=f"{type(error).__name__}: {error}")


def read(model: Any, name: str) -> SweepRow:
    """Read a model, and compare it with its own pass and independent computations unless it is refused."""
    try:
        llm = DecoderLLM(model, tiny_tokenizer(), id=name)
    except UnsupportedLLMError as error:
        message = str(error)
        assert name in message
        assert "\n" not in message
        return SweepRow(name=name, result="refused", how=message)
    check_exact(llm)
    return SweepRow(name=name, result="exact", how=llm.reading.lone_calls)


def check_exact(llm: DecoderLLM) -> None:
    """Compare every prompt's updates with the model's own pass and an independent computation of tokens alone.

    Prompts are read in a batch, padded on either side, behind a template, and in many calls.
    """
    tolerance = TOLERANCE[llm.reading.lone_calls]
    for template in (None, TEMPLATE):
        tokens = llm.tokenize(PROMPTS, template=template)
        for lone in LONES:
            batch = llm.block_updates(PROMPTS, lone=lone, template=template)
            left: list[Tensor] = []
            run_blocks(llm, padded_left(tokens), lone=lone, visit=lambda _, x, u, v, to=left: to.append(v))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("llmdiff.language.lone_calls._MAX_TOKENS", 0)
                separate = llm.block_updates(PROMPTS, lone=lone, template=template)
            ids, places = full_ids(tokens, ROW), kept_places(tokens, ROW)
            expected = lone_updates(llm, ids, lone)[:, places]
            _, context, _ = own_updates(llm, ids)
            for states in (batch, separate):
                assert_relative(real(states, ROW).context, context[:, places], tolerance)
                assert_relative(real(states, ROW).lone, expected, tolerance)
            assert_relative(torch.stack(left)[:, ROW, -len(places) :], expected, tolerance)
