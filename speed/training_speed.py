"""Samples a second of `llmdiff train` and of a plain loop, of the same models: python speed/training_speed.py

The plain loop is the usual practice: every step reads its pictures, encodes them with the VAE, reads their captions
with the LLM at a fixed 77 tokens, and keeps nothing; float32. Ours is what `llmdiff train` does: latents and encodings
come from the store, which is filled first (its time is given apart), and captions are as long as they are. Both start
from the same adapter and see the same pictures, captions, noise and timesteps in the same order, so their losses can be
compared step by step. The first step of each is not timed.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmdiff.adapter.families import denoiser_of, family_of
from llmdiff.adapter.installation import install
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.training.batches import Epochs
from llmdiff.training.config import TrainConfig
from llmdiff.training.denoise import denoise, encode_pictures
from llmdiff.training.log import read_log
from llmdiff.training.loop import step_part
from llmdiff.training.objective import Objective
from llmdiff.training.prepare import TrainingModels, load_models, prepare
from llmdiff.training.trainer import train_adapter
from llmdiff.types import BlockStates, TextEncoding

_TOKENS = 77


def settings(options: argparse.Namespace, folder: Path) -> TrainConfig:
    """Return the configuration of both loops, without features of ours that change the loss."""
    training = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": 1e-3,
        "scalar_learning_rate": 1e-3,
        "lr_schedule": "constant",
        "lr_warmup_steps": 0,
        "caption_dropout": 0.0,
        "noise": False,
        "log_every": 1,
        "checkpoint_every_s": 1e9,
    }
    return TrainConfig.model_validate(
        {
            "out": str(folder / "run"),
            "device": options.device,
            "models": {"llm": options.llm, "base": options.base},
            "data": {
                "kind": "scenes",
                "scenes": options.steps * options.batch_size,
                "resolution_px": 128,
                "aspect_buckets": False,
                "store_latents": True,
            },
            "training": training,
            "watch": {"validation_samples": 0, "prompts": [], "trackers": []},
        }
    )


@torch.no_grad()
def read_padded(llm: DecoderLLM, context: ContextEncoding, texts: list[str]) -> TextEncoding:
    """Return the text encoding, read at 77 tokens: each block twice, in context and with all other tokens masked."""
    tokens = llm.tokenize(texts, max_length=_TOKENS)
    spare = _TOKENS - tokens.input_ids.shape[1]
    ids = nn.functional.pad(tokens.input_ids, (0, spare)).to(llm.device)
    mask = nn.functional.pad(tokens.token_mask, (0, spare)).to(llm.device)
    alone = torch.full((_TOKENS, _TOKENS), torch.finfo(llm.dtype).min, device=llm.device).fill_diagonal_(0)
    if context.lone == "token+bos":
        alone[:, 0] = 0
    states: list[Tensor] = []
    in_context: list[Tensor] = []
    by_itself: list[Tensor] = []

    def after(block: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        x, more = args[0], {**kwargs, "attention_mask": alone.to(args[0].dtype)[None, None]}
        states.append(x)
        in_context.append((out if isinstance(out, Tensor) else out[0]) - x)
        lone = block.forward(x, **more)
        by_itself.append((lone if isinstance(lone, Tensor) else lone[0]) - x)

    hooks = [block.register_forward_hook(after, with_kwargs=True) for block in llm.blocks]
    try:
        llm.model.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    updates = BlockStates(
        x0=states[0],
        context=torch.stack(in_context),
        lone=torch.stack(by_itself),
        token_mask=mask,
        input_ids=ids,
    )
    return TextEncoding(states=context.sum(updates), token_mask=mask)


def train_plainly(config: TrainConfig, parts: TrainingModels) -> tuple[list[float], list[float]]:
    """Return the losses and seconds of every step of the plain loop."""
    training, adapter = config.training, parts.adapter
    denoiser, family = denoiser_of(parts.pipe), family_of(parts.pipe)
    objective = Objective.of(parts.pipe.scheduler)
    epochs = Epochs(rows=parts.samples.rows, batch_size=training.batch_size, seed=training.seed)
    trained = [one for one in adapter.parameters() if one.requires_grad]
    groups = [
        {"params": [one for one in trained if (one.ndim > 1) == decays], "weight_decay": 0.01 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.99))
    losses: list[float] = []
    seconds: list[float] = []
    with install(denoiser, adapter):
        for step in range(training.steps):
            began = time.monotonic()
            rng = np.random.default_rng([training.seed, 14, step])
            loaded = [parts.samples.load(index, rng) for index in epochs.batch(step)]
            latents = encode_pictures(parts.pipe.vae, torch.stack([pixels for pixels, _, _ in loaded]))
            assert adapter.context is not None
            encoding = read_padded(parts.llm, adapter.context, [text for _, text, _ in loaded])
            states, pooled = adapter.condition(encoding)
            noised = objective.noised(latents, step_part(training.seed, step).generator)
            sizes = [size for _, _, size in loaded]
            output = denoise(denoiser, family, noised.latents, noised.timesteps, states, pooled, sizes)
            loss = objective.loss(output, noised)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            seconds.append(time.monotonic() - began)
    return losses, seconds


def difference(parts: TrainingModels) -> float:
    """Return the largest difference between both ways of reading, as a share of the encoding's size."""
    texts = ["a cat to the left of a red heart", "two apples"]
    context = parts.adapter.context
    assert context is not None
    ours, padded = context.encode(parts.llm, texts), read_padded(parts.llm, context, texts)
    cut = padded.states[:, : ours.states.shape[1]]
    return float((ours.states - cut).abs().max() / ours.states.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--base", default="openmoji")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", choices=["cpu"], default=None)
    parser.add_argument("--out", type=Path, default=Path("out/training_speed.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(options, Path(folder))
        parts = load_models(config, torch.device(options.device or "cpu"))
        began = time.monotonic()
        prepare(config, parts)
        prepare_s = time.monotonic() - began
        apart = difference(parts)
        other_losses, other_s = train_plainly(config, parts)
        train_adapter(config)
        lines = [line for line in read_log(config.out / "log.jsonl") if "samples_per_s" in line]
    losses = [line["loss"] for line in lines]
    count = options.batch_size
    ours = (len(lines) - 1) * count / sum(count / line["samples_per_s"] for line in lines[1:])
    other = (len(other_s) - 1) * count / sum(other_s[1:])
    half = options.steps // 2
    result = {
        "name": "training_speed",
        "ratio": ours / other,
        "ours": ours,
        "other": other,
        "unit": "samples/s",
        "loss": {
            "ours": float(np.mean(losses[half:])),
            "other": float(np.mean(other_losses[half:])),
            "largest_difference_of_a_step": float(np.abs(np.subtract(losses, other_losses)).max()),
            "of_steps": [half, options.steps],
        },
        "prepare_s": prepare_s,
        "prepare_samples_per_s": options.steps * count / prepare_s,
        "encodings_differ_by": apart,
        "llm": options.llm,
        "base": options.base,
        "steps": options.steps,
        "batch_size": count,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch",
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print("| | samples/s | loss over the second half |\n|---|---|---|")
    print(f"| plain loop | {other:.2f} | {result['loss']['other']:.4f} |")
    print(f"| llmdiff train | {ours:.2f} | {result['loss']['ours']:.4f} |")
    print(f"{ours / other:.1f} times as fast; filling the store took {prepare_s:.1f} s, once")


if __name__ == "__main__":
    main()
