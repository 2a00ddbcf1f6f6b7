"""Time and memory of a training from captions alone, at the shape of Stable Diffusion 1.5, with random weights.

    python speed/captions_only.py --steps 200 --out docs/results/captions-only.json          # a GPU
    python speed/captions_only.py --quick --out captions-only.json                      # a tenth of its widths

Weights are random, so nothing is learned that means anything: the figures are seconds a step, the seconds before the
first step (encoding the captions, drawing the base's queries) and the peak of memory.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import PROMPTS
from tiny_models import sd15_shaped, tiny_llm

from llmdiff.files import write_whole
from llmdiff.training.config import TrainConfig
from llmdiff.training.log import read_log
from llmdiff.training.trainer import train_adapter


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small shape and two steps, on the CPU")
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(given)
    steps, batch = (2, 4) if options.quick else (options.steps, options.batch)
    side_px = 64 if options.quick else 512
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sd15_shaped(side_px, side_px, small=options.quick).save_pretrained(folder / "base")
        llm = options.llm
        if options.quick:
            tiny = tiny_llm()
            tiny.model.save_pretrained(folder / "llm")
            tiny.tokenizer.save_pretrained(folder / "llm")
            llm = str(folder / "llm")
        parts = [part for prompt in PROMPTS for part in prompt.split(",")]
        captions = [f"{one}, {other}".strip() for one in parts for other in parts]
        lines = [json.dumps({"text": text, "plain": text.partition(",")[0]}) for text in captions]
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        config = TrainConfig.model_validate(
            {
                "out": str(folder / "run"),
                "device": "cpu" if options.quick else None,
                "models": {"llm": llm, "base": str(folder / "base")},
                "data": {
                    "kind": "captions",
                    "path": str(folder / "pairs.jsonl"),
                    "resolution_px": side_px,
                },
                "training": {
                    "steps": 0,
                    "warm_start_steps": steps,
                    "batch_size": batch,
                    "precision": "no" if options.quick else "bf16",
                    "log_every": 1,
                },
                "watch": {"prompts": []},
            }
        )
        start = time.perf_counter()
        train_adapter(config)
        seconds = time.perf_counter() - start
        log = read_log(config.out / "warm-start" / "log.jsonl")
    # The first step draws the queries.
    step_s = median(1 / line["steps_per_s"] for line in log[1:])
    found = {
        "shape": "a tenth of Stable Diffusion 1.5's widths" if options.quick else "Stable Diffusion 1.5",
        "llm": "tiny" if options.quick else llm,
        "device": "cpu" if options.quick else torch.cuda.get_device_name(),
        "steps": steps,
        "batch_size": batch,
        "captions": len(captions),
        "step_s": step_s,
        "before_the_first_step_s": seconds - step_s * steps,
        "peak_memory_gb": max(line["memory_gb"] for line in log),
    }
    write_whole(options.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
