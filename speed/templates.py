"""What an instruction around the prompt, and the way blocks are summed, leave for a linear reader to find.

    python speed/templates.py --out docs/results/templates.json

A probe (llmdiff_lab.inspection.probes) is trained on captions of pairs in the training's words and asked for both
things on held-out words. Encodings: `paper` and `guided` with learned gains, `plain` (guided with k = g), and the
last hidden state. The best row is what the embedded default uses.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from llmdiff.evaluation.statistics import bootstrap_mean
from llmdiff.language.encoding import ContextEncoding
from llmdiff.language.llm import DecoderLLM
from llmdiff.world.expected import Expected
from llmdiff.world.layouts import OPPOSITE
from llmdiff.world.packaged import packaged_world
from llmdiff.world.scenes import World
from llmdiff.world.splits import Split, prompts
from llmdiff_lab.inspection.block_sums import BlockSums
from llmdiff_lab.inspection.caption_bank import EncodingBank, by_length, in_batches
from llmdiff_lab.inspection.probes import Targets, correct_answers, probe_answers, train_probe

TEMPLATES = {
    "none": None,
    "simple words": "Describe the picture in simple words: which object is where, and what is it called? "
    "Picture: {prompt}",
    "echo": "{prompt}\n{prompt}",
    "echo, simple words": "Picture: {prompt}\nThe same picture in simple words: {prompt}",
    "chat": "<|im_start|>user\nWhich common objects does this picture show, and where are they? {prompt}<|im_end|>\n"
    "<|im_start|>assistant\n",
}
ENCODINGS = ("paper", "guided", "plain", "last hidden")
SPLITS: tuple[Split, ...] = ("seen", "pairs", "forms", "synonyms", "descriptions")


def pairs(world: World, split: Split, count: int, seed: int) -> tuple[list[Expected], list[str]]:
    """Return requirements of pairs in a relation, with captions in the words of a split."""
    # About a third of all scenes are such pairs.
    found = [
        row for row in prompts(split, 10 * count, seed=seed, world=world) if row.expected.relation in OPPOSITE
    ]
    if len(found) < count:
        raise SystemExit(f"split {split} has {len(found)} pairs among {10 * count} prompts, expected {count}")
    return [row.expected for row in found[:count]], [row.text for row in found[:count]]


class Encoded:
    """A template's captions, read once: every block's scores and the last hidden state."""

    def __init__(
        self, llm: DecoderLLM, captions: list[str], template: str | None, lone: Any, title: str
    ) -> None:
        self.sums = BlockSums(llm, captions, template=template, lone=lone, title=title)
        order = by_length(captions)
        batches = in_batches([captions[i] for i in order], batch=32, title=f"{title}, last")
        with torch.no_grad():
            self.last = EncodingBank(
                (llm.last_hidden_states(part, template=template) for part in batches), order
            )

    def context(self, encoding: str) -> ContextEncoding | None:
        return None if encoding == "last hidden" else self.sums.fresh_gains(encoding)  # type: ignore[arg-type]

    def batch(self, encoding: str, context: ContextEncoding | None) -> Any:
        if context is None:
            return self.last.batch
        return lambda indices: self.sums.encode(indices, encoding, context)  # type: ignore[arg-type]


def measure(llm: DecoderLLM, world: World, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    trained = pairs(world, "seen", chosen.captions, 1)
    tested = {split: pairs(world, split, chosen.tests, 2) for split in SPLITS}
    rows: list[dict[str, Any]] = []
    for title in chosen.templates.split(";"):
        template = TEMPLATES[title]
        captions = trained[1] + [text for split in SPLITS for text in tested[split][1]]
        encoded = Encoded(llm, captions, template, chosen.lone, title)
        for encoding in ENCODINGS:
            context = encoded.context(encoding)
            gains = (
                [] if context is None else [p for name, p in context.named_parameters() if name != "h_raw"]
            )
            batch = encoded.batch(encoding, context)
            targets = Targets.of(trained[0], world)
            probe = train_probe(batch, targets, llm.hidden_size, gains=gains, steps=chosen.steps)
            row: dict[str, Any] = {"template": title, "encoding": encoding, "lone": chosen.lone}
            for number, split in enumerate(SPLITS):
                offset = chosen.captions + number * chosen.tests
                asked = Targets.of(tested[split][0], world)
                answers = probe_answers(
                    probe,
                    lambda indices, offset=offset, batch=batch: batch([i + offset for i in indices]),
                    asked,
                )
                right = correct_answers(answers, asked)
                placed = bootstrap_mean(right["objects"].double().numpy())
                row[split] = {
                    "placed": placed.mean,
                    "low": placed.low,
                    "high": placed.high,
                    "named": float(right["named"].double().mean()),
                }
            rows.append(row)
            cells = "  ".join(
                f"{split} {row[split]['placed']:.2f}/{row[split]['named']:.2f}" for split in SPLITS
            )
            print(f"{title:20s} {encoding:12s} {cells}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--captions", type=int, default=1800, help="captions to train each probe on")
    parser.add_argument("--tests", type=int, default=200, help="captions per split")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lone", default="token+bos", choices=("token", "token+bos"))
    parser.add_argument("--templates", default=";".join(TEMPLATES), help="names, separated by semicolons")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    started = time.monotonic()
    rows = measure(DecoderLLM.from_pretrained(chosen.llm), packaged_world(), chosen)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"llm": chosen.llm, "rows": rows, "seconds": round(time.monotonic() - started)}
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
