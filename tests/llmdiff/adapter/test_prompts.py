"""encode_prompt under LLM control: no leaks, one set of keys per generation, guidance, padding."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmdiff.adapter import LLMDiffAdapter, attach, detach, families, layers
from llmdiff.errors import PromptError
from llmdiff.types import TextEncoding

Draw = Callable[..., torch.Tensor]
PROMPTS = [
    "a cat",
    "a dog",
    "two red apple",
    "a photo of the blue car on the left",
    "green",
    "three dog and a cat",
    "the cat in the car",
    "an apple above the dog",
    "a red car below a blue car",
    "cat",
]


def test_ten_prompts_do_not_leak(pipe: Any, make_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw) -> None:
    attach(pipe, make_llm(), loud_adapter)
    in_a_row = [draw(pipe, prompt) for prompt in PROMPTS]
    detach(pipe)
    for prompt, image in zip(PROMPTS, in_a_row, strict=True):
        fresh = copy.deepcopy(pipe)
        attach(fresh, make_llm(), copy.deepcopy(loud_adapter))
        assert (draw(fresh, prompt) - image).abs().max() < 1e-6
    assert len({image.numpy().tobytes() for image in in_a_row}) == len(PROMPTS)


def test_keys_and_values_once_per_generation(attached: Any, draw: Draw) -> None:
    calls: dict[str, int] = {}
    text_layers: dict[str, Any] = layers.text_layers(families.denoiser_of(attached))
    for name, attn in text_layers.items():
        branch = attn.forward.__self__.branch
        for kind, module in (
            ("old k", attn.to_k),
            ("old v", attn.to_v),
            ("k", branch.to_k),
            ("v", branch.to_v),
            ("q", branch.to_q),
        ):
            key = f"{name} {kind}"
            calls[key] = 0

            def count(*_: object, key: str = key) -> None:
                calls[key] += 1

            module.register_forward_hook(count)
    draw(attached, steps=4)
    assert calls == {key: 4 if key.endswith(" q") else 1 for key in calls}
    assert len(calls) == 5 * len(text_layers)


def test_a_prompt_is_the_same_alone_and_beside_a_longer_one(attached: Any, draw: Draw) -> None:
    short, long = "a cat", "a photo of the red car on the left and two green apple above the dog"
    together = draw(attached, [short, long])
    assert (together[0] - draw(attached, short)[0]).abs().max() < 1e-3
    assert (together[1] - draw(attached, long)[0]).abs().max() < 1e-3


def test_guidance_with_prompts_of_different_lengths(attached: Any, draw: Draw) -> None:
    plain = draw(attached, "a cat")
    long = "a photo of the red car on the left and two green apple"
    steered = draw(attached, "a cat", negative_prompt=long)
    assert (steered - plain).abs().max() > 1e-3
    assert torch.allclose(draw(attached, "a cat", negative_prompt=""), plain, atol=1e-5)
    both = draw(attached, ["a cat", "a dog"], negative_prompt=[long, "red"])
    assert (both[0] - steered[0]).abs().max() < 1e-3
    one_for_all = draw(attached, ["a cat", "a dog"], negative_prompt=long)
    assert (one_for_all[0] - steered[0]).abs().max() < 1e-3
    assert draw(attached, "a cat", guidance_scale=1.0).shape == plain.shape


def test_images_per_prompt(attached: Any, draw: Draw) -> None:
    single = [draw(attached, prompt, negative_prompt="green dog") for prompt in ("a cat", "two apple")]
    three = draw(attached, ["a cat", "two apple"], negative_prompt=["green dog"] * 2, num_images_per_prompt=3)
    assert three.shape[0] == 6
    for index, image in enumerate(three):
        assert (image - single[index // 3][0]).abs().max() < 1e-3


def test_mixing_works_for_batches_and_several_images(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    attach(pipe, tiny_llm, loud_adapter, scale=0.5)
    alone = draw(pipe, "a cat", negative_prompt="red")
    many = draw(pipe, ["a cat", "two dog and a car"], negative_prompt=["red", ""], num_images_per_prompt=2)
    assert (many[0] - alone[0]).abs().max() < 1e-3
    assert (many[1] - alone[0]).abs().max() < 1e-3
    detach(pipe)


def test_embeddings_pass_through(attached: Any, draw: Draw) -> None:
    expected = draw(attached, "a cat", negative_prompt="red")
    returned = attached.encode_prompt(
        prompt="a cat",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt="red",
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    given = dict(zip(names, returned, strict=False))
    assert torch.allclose(draw(attached, None, **given), expected, atol=1e-5)


def test_embeddings_of_the_base_draw_the_base(
    pipe: Any, tiny_llm: Any, loud_adapter: LLMDiffAdapter, draw: Draw
) -> None:
    base = draw(pipe, "a cat", negative_prompt="red")
    returned = pipe.encode_prompt(
        "a cat",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt="red",
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    given = dict(zip(names, returned, strict=False))
    attach(pipe, tiny_llm, loud_adapter)
    assert torch.allclose(draw(pipe, None, **given), base, atol=1e-6)
    attached_call = {name: value for name, value in given.items() if name.startswith("negative")}
    with pytest.raises(PromptError, match="negative_prompt_embeds has width 24, expected 40"):
        pipe.encode_prompt(
            "a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **attached_call
        )
    detach(pipe)


def test_encode_prompt_keeps_the_signature(attached: Any) -> None:
    plain = type(attached).encode_prompt.__get__(attached)
    assert inspect.signature(attached.encode_prompt) == inspect.signature(plain)


@pytest.mark.parametrize("prompt", ["", "  \n", ["a cat", " "]])
def test_blank_prompts_are_refused(attached: Any, draw: Draw, prompt: Any) -> None:
    with pytest.raises(PromptError, match="blank"):
        draw(attached, prompt)


def test_a_prompt_of_10000_tokens_is_cut_with_a_warning_and_drawn(attached: Any, draw: Draw) -> None:
    # The LLM's 128 positions, less BOS.
    with pytest.warns(UserWarning, match=r"prompts\[1\] has 10000 tokens: the last 9873 were cut, the first"):
        pair = draw(attached, ["a cat", "cat " * 10_000])
    assert (pair[0] - draw(attached, "a cat")[0]).abs().max() < 1e-3
    assert torch.equal(pair, draw(attached, ["a cat", "cat " * 127]))


def test_wrong_negative_prompts_are_refused(attached: Any) -> None:
    def encode(**more: Any) -> Any:
        return attached.encode_prompt(
            prompt=["a cat", "a dog"],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            **more,
        )

    with pytest.raises(PromptError, match="negative_prompt has 3 texts, prompt has 2"):
        encode(negative_prompt=["red"] * 3)
    with pytest.raises(PromptError, match="negative_prompt is"):
        encode(negative_prompt=[1, 2])


def test_a_second_prompt_is_refused(sdxl_pipe: Any, tiny_llm: Any, draw: Draw, make_adapter: Any) -> None:
    attach(sdxl_pipe, tiny_llm, make_adapter(sdxl_pipe, tiny_llm))
    with pytest.raises(PromptError, match="prompt_2 is for a second text encoder"):
        draw(sdxl_pipe, "a cat", prompt_2="a dog")
    assert draw(sdxl_pipe, "a cat", prompt_2="a cat").shape[0] == 1


def test_sdxl_pooled_vector_is_the_llms(sdxl_pipe: Any, tiny_llm: Any, make_adapter: Any) -> None:
    adapter = make_adapter(sdxl_pipe, tiny_llm)
    attach(sdxl_pipe, tiny_llm, adapter)
    positive, negative, pooled, negative_pooled = sdxl_pipe.encode_prompt(
        "a red cat", num_images_per_prompt=2
    )
    assert adapter.context is not None
    states, expected = adapter.condition(adapter.context.encode(tiny_llm, ["a red cat"]))
    assert torch.allclose(positive[0, : states.shape[1]], states[0], atol=1e-5)
    assert torch.allclose(pooled, expected.expand(2, -1), atol=1e-5)
    assert pooled.shape == negative_pooled.shape == (2, 20)
    assert positive.shape == negative.shape


def test_clip_skip_is_said_to_be_ignored(sd_pipe: Any, tiny_llm: Any, draw: Draw, make_adapter: Any) -> None:
    attach(sd_pipe, tiny_llm, make_adapter(sd_pipe, tiny_llm))
    with pytest.warns(UserWarning, match="clip_skip has no effect"):
        draw(sd_pipe, clip_skip=1)


def test_states_can_come_from_elsewhere(sd_pipe: Any, draw: Draw, make_adapter: Any) -> None:
    class Source:
        id, hidden_size, num_blocks = "own states", 5, 0

        def encode(self, prompts: list[str]) -> TextEncoding:
            states = torch.stack([torch.full((2, 5), float(len(prompt))) for prompt in prompts])
            states[..., 0] = -1.0
            return TextEncoding(states=states, token_mask=torch.ones(states.shape[:2], dtype=torch.bool))

    source = Source()
    attach(sd_pipe, source, make_adapter(sd_pipe, source, encoding=None))
    assert torch.isfinite(draw(sd_pipe)).all()
