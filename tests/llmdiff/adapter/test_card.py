"""The model card: its metadata, what it says, and what it leaves out."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from llmdiff import LLMController
from llmdiff.adapter.card import adapter_card


def card(pipe: Any, llm: Any, **options: Any) -> ModelCard:
    controller = LLMController.create(llm, pipe, **options)
    return ModelCard(adapter_card(controller.adapter, repo_id="someone/an-adapter"))


def test_card_names_the_models_and_how_to_load(pipe: Any, make_llm: Any) -> None:
    found = card(
        pipe, make_llm(id="someone/an-llm"), base_model_id="someone/a-base", template="Look | here:\n{prompt}"
    )
    data = found.data.to_dict()
    assert data["base_model"] == ["someone/a-base", "someone/an-llm"]
    assert data["library_name"] == "llmdiff"
    assert data["pipeline_tag"] == "text-to-image"
    assert "license" not in data
    assert 'LLMController.from_pretrained("someone/an-adapter")' in found.text
    assert "# an-adapter" in found.text
    assert "512 tokens" in found.text
    assert "| refiner | 2 layers of width 16 |" in found.text
    assert "| default scale | 1 (1: the LLM alone) |" in found.text
    assert "load it yourself" not in found.text
    rows = [line for line in found.text.splitlines() if line.startswith("| template")]
    assert rows == ["| template | `'Look \\| here:\\n{prompt}'` |"]


@pytest.mark.parametrize("place", ["/home/ann/llms/secret", "../llms/secret", r"C:\llms\secret"])
def test_card_holds_no_local_folder(sd_pipe: Any, make_llm: Any, place: str) -> None:
    found = card(sd_pipe, make_llm(id=place), base_model_id=place)
    assert "secret" not in str(found)
    assert "base_model" not in found.data.to_dict()
    assert found.text.count("load it yourself") == 2


def test_card_of_gguf_and_named_models(sd_pipe: Any, make_llm: Any) -> None:
    found = card(sd_pipe, make_llm(id="someone/an-llm/file.gguf"), base_model_id="openmoji")
    assert "`someone/an-llm/file.gguf`" in found.text
    assert "`openmoji`" in found.text
    assert "base_model" not in found.data.to_dict()


def test_licence_is_claimed_only_when_given(sd_pipe: Any, make_llm: Any) -> None:
    adapter = LLMController.create(make_llm(), sd_pipe).adapter
    text = adapter_card(adapter, repo_id="someone/an-adapter", license="apache-2.0")
    assert ModelCard(text).data.to_dict()["license"] == "apache-2.0"
