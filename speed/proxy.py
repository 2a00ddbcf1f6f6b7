"""What a closed LLM by proxy brings on prompts that name no object: accuracy with and without it, the same seeds.

    python speed/proxy.py --prompts 100 --out docs/results/proxy.json
    python speed/proxy.py --reword-url https://host/v1 --reword-model NAME --out proxy.json

Without --reword-url, a local server of SmolLM2 itself stands in for the closed LLM (`transformers serve`): that shows
what the way costs and that it holds, not what a strong model knows. "llm told" is the bound for any: the answer is the
scene's own content in plain words, as a closed LLM would give it that understands every prompt.
"""

import argparse
import json
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local_server import served

from llmdiff.adapter.settings import Control
from llmdiff.controller import LLMController
from llmdiff.environment import command_line, versions
from llmdiff.evaluation.statistics import bootstrap_mean, paired_difference
from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker, scene_prompts
from llmdiff.evaluation.systems import controller_systems
from llmdiff.evaluation.tables import percent
from llmdiff.files import write_whole
from llmdiff.language.closed_llm import ClosedLLM, ClosedLLMSettings
from llmdiff.language.packaged import EMBEDDED_NAME, packaged_llm_folder
from llmdiff.language.rewording import Rewording
from llmdiff.world.checker import WorldChecker
from llmdiff.world.splits import training_caption

# Small models repeat themselves without end under the library's own instruction.
SHORT = "Rewrite the description as one short sentence with simple words. Answer with that sentence alone."


_BATCH = 16


@dataclass
class AskedOnce(ClosedLLM):
    """A closed LLM that is not asked again where it failed: what is counted is what was drawn."""

    told: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def answers(self, prompt: str) -> tuple[str, ...]:
        if prompt not in self.told:
            self.told[prompt] = super().answers(prompt)
        return self.told[prompt]


@dataclass
class Told(ClosedLLM):
    """What a closed LLM would answer that understands every prompt."""

    words: dict[str, str] = field(default_factory=dict, repr=False)

    def answers(self, prompt: str) -> tuple[str, ...]:
        return (self.words[prompt],)


def compare(
    controller: LLMController, checker: WorldChecker, rewording: Rewording, chosen: argparse.Namespace
) -> dict[str, Any]:
    """Return the accuracy of base, LLM, LLM with rewording and LLM with plain answers by split, and the gains."""
    suite = scene_prompts(
        chosen.prompts,
        0,
        checker.world,
        splits=chosen.splits.split(","),  # type: ignore[arg-type]
    )
    pipe = controller.load_pipeline()
    drawing = {"steps": chosen.steps}
    base, llm = controller_systems(controller, pipe, control=1.0, **drawing).values()

    told = Told(
        rewording.closed.settings,
        words={row.prompt: training_caption(row.scene, 0, 0, "plain").text for row in suite},
    )

    systems = {"base": base, "llm": llm}
    for name, given in (("llm reworded", rewording), ("llm told", Rewording(closed=told))):
        control = Control(scale=1.0, rewording=given)
        systems[name] = controller_systems(controller, pipe, control=control, **drawing)["llm"]

    scorer = SceneScorer(checker)
    exact = {
        name: [
            one["score"]
            for at in range(0, len(suite), _BATCH)
            for rows in [suite[at : at + _BATCH]]
            for one in scorer.judge(
                system([row.prompt for row in rows], [row.seeds(1, 0)[0] for row in rows]), rows
            )
        ]
        for name, system in systems.items()
    }
    answers = {row.prompt: next(iter(rewording.closed.answers(row.prompt)), "") for row in suite}
    splits = {
        split: [at for at, row in enumerate(suite) if row.split == split]
        for split in dict.fromkeys(row.split for row in suite)
    }
    return {
        "splits": {
            split: {
                "accuracy": {
                    name: asdict(bootstrap_mean([values[at] for at in places]))
                    for name, values in exact.items()
                },
                **{
                    gain: asdict(
                        paired_difference(
                            [exact[name][at] for at in places], [exact["llm"][at] for at in places]
                        )
                    )
                    for gain, name in (("gain", "llm reworded"), ("gain_told", "llm told"))
                },
                "answered": sum(bool(answers[suite[at].prompt]) for at in places) / len(places),
            }
            for split, places in splits.items()
        },
        "examples": [
            {"prompt": suite[at].prompt, "answer": answers[suite[at].prompt]}
            for places in splits.values()
            for at in places[:5]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reword-url", help="address of a closed LLM [a local server of SmolLM2]")
    parser.add_argument("--reword-model", help="its name there")
    parser.add_argument("--instruction", default=SHORT, help="what it is told to do")
    parser.add_argument("--max-characters", type=int, default=200)
    parser.add_argument("--adapter", default="openmoji")
    parser.add_argument("--checker", default="openmoji")
    parser.add_argument("--splits", default="synonyms,descriptions")
    parser.add_argument("--prompts", type=int, default=100, help="of every split")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--answers", type=Path, default=Path("runs/answers"), help="where answers are kept")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    if (chosen.reword_url is None) != (chosen.reword_model is None):
        parser.error("--reword-url and --reword-model: got one, expected both or none")
    local = str(packaged_llm_folder(EMBEDDED_NAME)) if chosen.reword_url is None else ""
    controller = LLMController.from_pretrained(chosen.adapter)
    checker = load_checker(chosen.checker)
    with served(local) if local else nullcontext(chosen.reword_url) as url:
        settings = ClosedLLMSettings(
            url=url,
            model=local or chosen.reword_model,
            instruction=chosen.instruction,
            max_characters=chosen.max_characters,
            timeout_s=120,
            budget_s=240,
            # A local model at temperature 0 would say the same again.
            retries=0 if local else 3,
        )
        warnings.simplefilter("ignore", UserWarning)  # a refused answer is counted, not told one by one
        record = compare(controller, checker, Rewording(closed=AskedOnce(settings, chosen.answers)), chosen)
    for split, row in record["splits"].items():
        shown = "  ".join(f"{name} {100 * figures['mean']:.1f}" for name, figures in row["accuracy"].items())
        for key in ("gain", "gain_told"):
            shown += f"  {key} {percent(row[key], sign=True)}"
        print(f"{split:10s} {shown}")
    about = {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "reword_model": EMBEDDED_NAME if local else chosen.reword_model,
        "instruction": chosen.instruction,
        "adapter": chosen.adapter,
        "versions": versions(),
    }
    write_whole(chosen.out, json.dumps(about | record, indent=1) + "\n")


if __name__ == "__main__":
    main()
