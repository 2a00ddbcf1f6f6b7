"""Prompts that are encoded once, saved, and drawn without the LLM and without the base's text encoders."""

import copy
import gc
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny.families import BUILDERS, drawn

from llmdiff import AdapterSettings, LLMController
from llmdiff.adapter.base_pipeline import load_base_pipeline
from llmdiff.adapter.families import FAMILIES
from llmdiff.errors import (
    AdapterMismatchError,
    ConfigError,
    CorruptWeightsError,
    InputFileError,
    PromptError,
)
from llmdiff.language.saved_encodings import SavedEncodings
from llmdiff.types import TextEncoding

from .conftest import build_adapter

_PROMPTS = ["a red cat", "two blue dog on the left of a big green car"]


def controller_for(pipe: Any, llm: Any, **more: Any) -> LLMController:
    return LLMController(llm, build_adapter(pipe, llm, **more))


def text_encoders(pipe: Any) -> dict[str, torch.nn.Module]:
    parts = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder")}
    return {name: part for name, part in parts.items() if part is not None}


def weights_bytes(pipe: Any) -> int:
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(weight.nbytes for module in modules for weight in module.state_dict().values())


@pytest.mark.parametrize("family", [row.name for row in FAMILIES])
def test_every_family_draws_the_same_without_llm_and_text_encoders(
    family: str, tiny_llm: Any, tmp_path: Path
) -> None:
    pipe = BUILDERS[family]()
    controller = controller_for(pipe, tiny_llm)
    takes_negative = "negative_prompt" in inspect.signature(type(pipe).__call__).parameters
    negative = {"negative_prompt": ["a tree", "a tree"]} if takes_negative else {}
    with controller.attached(pipe):
        expected = [drawn(pipe, _PROMPTS, **negative), drawn(pipe, _PROMPTS[0])]
    controller.encode([*_PROMPTS, "a tree", ""]).save(tmp_path / "encodings")
    controller.save_pretrained(tmp_path / "adapter")
    pipe.save_pretrained(tmp_path / "pipe")
    whole = weights_bytes(pipe)
    encoders = sum(w.nbytes for part in text_encoders(pipe).values() for w in part.state_dict().values())
    del controller, pipe

    alone = LLMController.from_pretrained(
        tmp_path / "adapter", llm=SavedEncodings.load(tmp_path / "encodings")
    )
    bare = alone.load_pipeline(tmp_path / "pipe", text_encoders=False)
    assert not text_encoders(bare)
    assert encoders > 0
    assert weights_bytes(bare) == whole - encoders
    bare.set_progress_bar_config(disable=True)
    with alone.attached(bare):
        found = [drawn(bare, _PROMPTS, **negative), drawn(bare, _PROMPTS[0])]
        with pytest.raises(
            PromptError, match=r"'a dog' is not among the 4 saved encodings .* no LLM is loaded"
        ):
            drawn(bare, "a dog")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_states_are_saved_as_they_are_and_padded_again(sd_pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    encoding = controller.encode(_PROMPTS)
    paths = encoding.save(tmp_path)
    assert [path.name.rpartition("-")[0] for path in paths] == [
        "a-red-cat",
        "two-blue-dog-on-the-left-of-a-big-green",
    ]
    again = SavedEncodings.load(tmp_path).encode(_PROMPTS)
    assert torch.equal(again.states, encoding.states)
    assert torch.equal(again.token_mask, encoding.token_mask)
    assert torch.equal(LLMController(SavedEncodings.load(paths[0]), controller.adapter).encode(_PROMPTS[0]).states,
                       encoding.states[:1, encoding.token_mask[0]])  # fmt: skip
    assert isinstance(encoding, TextEncoding)


def test_what_is_encoded_again_replaces_its_file(sd_pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    first = controller.encode("a cat").save(tmp_path)
    assert controller.encode(["a cat", "a dog"]).save(tmp_path)[0] == first[0]
    assert len(SavedEncodings.load(tmp_path)) == 2


def test_other_origins_do_not_share_a_folder(
    sd_pipe: Any, tiny_llm: Any, make_llm: Any, tmp_path: Path
) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    controller.encode("a cat").save(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"another origin .weighted 'False' and 'True'."):
        controller.encode("a dog", weighted=True).save(tmp_path / "a")
    half = make_llm()
    half.model.bfloat16()
    with pytest.raises(ConfigError, match="llm_dtype 'float32' and 'bfloat16'"):
        LLMController(half, controller.adapter).encode("a dog").save(tmp_path / "a")
    other = make_llm()
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.5)
    with pytest.raises(ConfigError, match="llm_sha256"):
        LLMController(other, controller.adapter).encode("a dog").save(tmp_path / "a")
    with pytest.raises(ConfigError, match="noise_seed"):
        controller.encode("a dog", noise_seed=3).save(tmp_path / "a")
    controller.encode("a dog", weighted=True).save(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match=r"have different origins .weighted"):
        SavedEncodings.load(tmp_path / "a")


def test_another_adapter_template_or_llm_is_refused(
    sd_pipe: Any, tiny_llm: Any, make_llm: Any, tmp_path: Path
) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    controller.encode("a cat").save(tmp_path)
    saved = SavedEncodings.load(tmp_path)
    with pytest.raises(AdapterMismatchError, match=r"template '', the adapter has 'draw {prompt}'"):
        LLMController(saved, build_adapter(sd_pipe, tiny_llm, template="draw {prompt}"))
    changed = copy.deepcopy(controller.adapter)
    with torch.no_grad():
        changed.phi.weight[0, 0] += 1
    with pytest.raises(AdapterMismatchError, match="were made for another adapter"):
        LLMController(saved, changed)
    wide = make_llm(hidden_size=32)
    with pytest.raises(AdapterMismatchError, match="states of width 16, the adapter was made for 32"):
        LLMController(saved, build_adapter(sd_pipe, wide))
    renamed = SavedEncodings({}, replace(saved.origin, llm="other"), place=tmp_path)
    with pytest.raises(AdapterMismatchError, match="llm is 'other'"):
        LLMController(renamed, controller.adapter)


def test_the_adapter_of_attached_encodings_may_not_learn(sd_pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    controller.encode("a cat").save(tmp_path)
    alone = LLMController(SavedEncodings.load(tmp_path), controller.adapter)
    with torch.no_grad():
        controller.adapter.norm.bias.add_(0.1)
    with pytest.raises(AdapterMismatchError, match="another adapter"):
        alone.attach(sd_pipe)


def test_weights_are_those_that_were_asked_for(sd_pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    controller.encode(["a (red:1.4) cat", ""], weighted=True).save(tmp_path)
    alone = LLMController(SavedEncodings.load(tmp_path), controller.adapter)
    with controller.attached(sd_pipe, weighted=True):
        expected = drawn(sd_pipe, "a (red:1.4) cat")
    with alone.attached(sd_pipe, weighted=True):
        assert torch.equal(drawn(sd_pipe, "a (red:1.4) cat"), expected)
    with (
        alone.attached(sd_pipe),
        pytest.raises(
            ConfigError, match="weighted is False, but the encodings were saved with weighted=True"
        ),
    ):
        drawn(sd_pipe, "a (red:1.4) cat")


def test_mixing_reads_the_base_text_beside_saved_encodings(
    sd_pipe: Any, tiny_llm: Any, tmp_path: Path
) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    controller.encode(["a red cat", ""]).save(tmp_path)
    alone = LLMController(SavedEncodings.load(tmp_path), controller.adapter)
    pictures = []
    for one in (controller, alone):
        with one.attached(sd_pipe, 0.6):
            pictures.append(drawn(sd_pipe, "a red cat"))
    assert torch.equal(*pictures)


def test_digests_are_taken_before_the_llm_goes(sd_pipe: Any, make_llm: Any, tmp_path: Path) -> None:
    controller = controller_for(sd_pipe, make_llm())
    encoding = controller.encode("a cat")
    del controller
    gc.collect()
    with pytest.raises(ConfigError, match=r"no longer in memory.*keep the controller"):
        encoding.save(tmp_path)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))


def _header(**changes: str | None) -> Any:
    def change(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            header = {**file.metadata(), **changes}
        save_file(
            load_file(path), path, metadata={key: one for key, one in header.items() if one is not None}
        )

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "is damaged"),
        (_flipped, "differs from its SHA-256"),
        (_header(version="1"), "no text encoding of version 2 .*version '1'"),
        (_header(format=None), "no text encoding"),
        (_header(llm_dtype=None), "lacks a valid 'llm_dtype'"),
        (_header(num_blocks="many"), "lacks a valid .*'many'"),
        (_header(weighted="perhaps"), "lacks a valid 'perhaps'"),
        (lambda path: save_file({"x": torch.zeros(1)}, path), "no text encoding"),
        (lambda path: path.write_text("{}"), "is damaged"),
    ],
)
def test_damaged_files_are_refused(
    sd_pipe: Any, tiny_llm: Any, tmp_path: Path, damage: Any, message: str
) -> None:
    controller = controller_for(sd_pipe, tiny_llm)
    path = controller.encode("a cat").save(tmp_path)[0]
    damage(path)
    with pytest.raises(CorruptWeightsError, match=message) as caught:
        SavedEncodings.load(tmp_path).encode(["a cat"])
    assert "\n" not in str(caught.value)


def test_a_place_without_encodings_is_named(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone", tmp_path / "gone.safetensors"):
        with pytest.raises(InputFileError, match="is neither a saved encoding nor a folder with some"):
            SavedEncodings.load(place)


def test_the_base_cannot_draw_without_its_text_encoders(sd_pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    sd_pipe.save_pretrained(tmp_path)
    bare = load_base_pipeline(str(tmp_path), dtype=torch.float32, text_encoders=False)
    controller = controller_for(sd_pipe, tiny_llm)
    for scale in (0.0, 0.5):
        with pytest.raises(
            ConfigError, match=r"text_encoder is None: load it .load_pipeline.text_encoders=True"
        ):
            controller.attach(bare, scale)


def test_an_adapter_of_every_setting_can_be_saved(sd_pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    settings = AdapterSettings(encoding="paper", refiner_layers=0, template="{prompt} .")
    controller = LLMController.create(tiny_llm, sd_pipe, settings)
    controller.encode("a cat").save(tmp_path)
    assert SavedEncodings.load(tmp_path).origin.template == "{prompt} ."
