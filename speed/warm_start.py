"""The image steps that a warm start from text saves: python speed/warm_start.py --out docs/results/warm-start.json

The same adapter on the same scenes, with and without a warm start, for several seeds; both learn their gains. The
measure is the validation loss on scenes set aside, on fixed noise. A cold run's last loss is the goal; counted are
the image steps that the warm run of the same seed takes to reach it, the seconds of its warm start beside them.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import mean
from typing import Any

from llmdiff.training.config import TrainConfig, load_config
from llmdiff.training.log import read_log
from llmdiff.training.trainer import train_adapter


def run(config: TrainConfig) -> tuple[list[dict[str, float]], float]:
    """Return the validation losses of a run by image step, and the seconds that its warm start took."""
    train_adapter(config)
    lines = read_log(config.out / "log.jsonl")
    warm = config.out / "warm-start" / "log.jsonl"
    warm_s = 0.0
    if warm.is_file():
        logged = read_log(warm)
        steps = [0.0, *(line["step"] for line in logged)]
        warm_s = sum(
            (line["step"] - before) / line["steps_per_s"] for before, line in zip(steps, logged, strict=False)
        )
    return [line for line in lines if "validation_loss" in line], warm_s


def steps_to(curve: list[dict[str, float]], goal: float) -> float | None:
    """Return the first image step at which a curve is at or below the goal, None where it never is."""
    return next((line["step"] for line in curve if line["validation_loss"] <= goal), None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("configs/openmoji-smollm2.yaml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="image steps of every run")
    parser.add_argument("--warm-steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--measurements", type=int, default=15, help="validations of a run")
    parser.add_argument("--validation", type=int, default=96, help="scenes set aside for them")
    parser.add_argument("--runs", type=Path, default=Path("runs/warm-start"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(chosen.seeds):
        found: dict[str, Any] = {"seed": seed}
        for name, warm_steps in (("cold", 0), ("warm", chosen.warm_steps)):
            every = max(1, chosen.steps // chosen.measurements)
            changes = {
                "out": chosen.runs / f"{name}-{seed}",
                "store": chosen.runs / "store",
                "data.scenes": chosen.scenes,
                "data.wording": "training",
                "training.gains": "learned",
                "training.gain_steps": 0,
                "training.score_groups": 6,
                "training.learning_rate": 1e-3,
                "training.lr_share_after_warm_start": 1.0,
                "training.seed": seed,
                "training.steps": chosen.steps,
                "training.batch_size": chosen.batch,
                "training.lr_warmup_steps": min(20, chosen.steps),
                "training.ema_horizon": 10,
                "training.lr_schedule": "constant",
                "training.warm_start_steps": warm_steps,
                "watch.validate_every": every,
                "watch.validation_samples": chosen.validation,
                "watch.prompts": "[]",
            }
            config = load_config(chosen.config, [f"{key}={value}" for key, value in changes.items()])
            found[name], found[f"{name}_start_s"] = run(config)
        goal = found["cold"][-1]["validation_loss"]
        found["goal"] = goal
        found["warm_steps_to_goal"] = steps_to(found["warm"], goal)
        rows.append(found)
        print(
            f"seed {seed}: cold reaches {goal:.5f} in {chosen.steps} image steps, warm in "
            f"{found['warm_steps_to_goal']} after {found['warm_start_s']:.0f} s of text",
            flush=True,
        )
    reached = [row["warm_steps_to_goal"] for row in rows]
    record = {
        "name": "warm start",
        "unit": "image steps to the cold run's last validation loss",
        "ours": None if None in reached else mean(reached),
        "other": chosen.steps,
        "ratio": None if None in reached else chosen.steps / mean(reached),
        "settings": {key: str(value) for key, value in vars(chosen).items()},
        "machine": f"{platform.machine()}, {platform.system()}",
        "rows": rows,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
