"""Measure which of the LLM's blocks a trained adapter draws with: all but one block, and one block alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.layer_groups import layer_groups
from llmdiff.adapter.settings import Control
from llmdiff.controller import LLMController
from llmdiff.errors import ConfigError
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference
from llmdiff.evaluation.suites.scenes import SceneScorer
from llmdiff.evaluation.suites.suite import PromptSuite
from llmdiff.evaluation.systems import System, pipeline_system
from llmdiff.language.encoding import ContextEncoding

ALL, NONE = "all blocks", "no block"
_EXACT = "scenes"


def block_settings(num_blocks: int) -> dict[str, dict[int, float]]:
    """Return the `block_gains` of every system that is compared, by its name.

    All blocks; no block, which leaves x_0 alone; all but block l; block l alone.
    """
    blocks = range(num_blocks)
    without = {f"without block {left_out}": {left_out: 0.0} for left_out in blocks}
    alone = {f"block {kept} alone": {block: 0.0 for block in blocks if block != kept} for kept in blocks}
    return {ALL: {}, NONE: dict.fromkeys(blocks, 0.0), **without, **alone}


def measure_blocks(
    controller: LLMController,
    pipe: Any,
    suite: PromptSuite,
    scorer: SceneScorer,
    folder: Path,
    *,
    control: Control,
    steps: int = 20,
    guidance_scale: float = 3.0,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Draw the suite with each of `block_settings`; return the learned weights and the accuracies.

    `all`, `none` and `alone` are shares of prompts drawn exactly right, `without` is the difference to `all` on the
    same prompts, with 95 % intervals over prompts; `without` and `alone` have one entry for each block. `groups` are
    the names of the attention layers of each column of the weights.

    Pictures and scores stay in `folder`; run again, it goes on where it was. `settings` identify the models, so that
    a folder with pictures of others is refused.

    Raises:
        ConfigError: the adapter does not sum blocks, `control` has gains of its own, or `folder` has pictures with
            other settings.
        OutputError: `folder` cannot be written.
    """
    context = controller.adapter.context
    if context is None:
        raise ConfigError("the adapter sums no blocks (its encoding is None): there is nothing to leave out")
    if control.block_gains:
        raise ConfigError("block_gains is given, expected none: it is what is compared")
    draw = pipeline_system(pipe, steps=steps, guidance_scale=guidance_scale)

    def system(gains: dict[int, float]) -> System:
        def attached(prompts: list[str], seeds: list[int]) -> NDArray[np.uint8]:
            with controller.attached(pipe, replace(control, block_gains=gains or None)):
                return draw(prompts, seeds)

        return attached

    systems = {name: system(gains) for name, gains in block_settings(context.num_blocks).items()}
    report = evaluate_suite(
        systems,
        suite,
        folder,
        metrics=[scorer],
        settings={"steps": steps, "guidance_scale": guidance_scale, **(settings or {})},
        command=command,
    )
    exact: dict[str, list[float]] = {name: [] for name in systems}
    for text in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        exact[line["system"]].append(line["values"][_EXACT])
    blocks = range(context.num_blocks)
    return {
        "llm": controller.llm.id,
        "prompts": len(suite.prompts),
        "settings": report["settings"],
        "weights": learned_weights(context),
        "groups": attention_groups(controller.adapter),
        "all": asdict(bootstrap_mean(exact[ALL])),
        "none": asdict(bootstrap_mean(exact[NONE])),
        "without": [
            asdict(paired_difference(exact[f"without block {block}"], exact[ALL])) for block in blocks
        ],
        "alone": [asdict(bootstrap_mean(exact[f"block {block} alone"])) for block in blocks],
        **{name: report[name] for name in ("checker", "versions", "command", "date")},
    }


def attention_groups(adapter: LLMDiffAdapter) -> list[list[str]]:
    """Return the names of the attention layers of every group that has gains of its own; one group without routing."""
    groups = layer_groups(adapter.config.cross_attention, adapter.groups)
    return [[name for name in groups if groups[name] == group] for group in range(adapter.groups)]


def learned_weights(context: ContextEncoding) -> dict[str, list[list[float]]]:
    """Return gamma, and kappa if the encoding has it, of every block and group of attention layers.

    Shapes: (blocks, groups) each; one group without routing.
    """
    gamma, kappa = context.gains()
    found = {"gamma": gamma} if kappa is None else {"gamma": gamma, "kappa": kappa}
    return {
        name: values.detach().float().reshape(context.num_blocks, -1).tolist()
        for name, values in found.items()
    }
