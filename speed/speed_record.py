"""Seconds of training to 70 % exact match on the embedded default's scenes: the speed record.

    python speed/speed_record.py configs/openmoji-smollm2.yaml [SECTION.KEY=VALUE ...] --name "who or what"

Trains from an empty store in a folder of its own, draws the prompts that `llmdiff evaluate` draws, and adds the run
to docs/results/speed-record.json and .md if it reaches the goal. The clock runs from the start of the training to the
written adapter, with all that is read and encoded before; drawing and scoring are not counted.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmdiff.controller import LLMController
from llmdiff.environment import command_line, provenance
from llmdiff.evaluation.report import evaluate_suite
from llmdiff.evaluation.suites.scenes import SceneScorer, load_checker, scene_prompts, scenes_suite
from llmdiff.evaluation.systems import controller_systems
from llmdiff.evaluation.tables import markdown_table, percent
from llmdiff.files import write_whole
from llmdiff.training.config import TrainConfig, load_config
from llmdiff.training.trainer import train_adapter

GOAL = 0.70
PROMPTS = 100  # of every split, as in docs/results/scenes.json
# Classes of machines; a class without an entry has an empty row.
CLASSES = ("2 CPU cores", "1 GPU")


def timed_run(config: TrainConfig, *, prompts: int) -> dict[str, Any]:
    """Train from nothing and evaluate; return seconds, exact match and the machine."""
    start = time.monotonic()
    adapter = train_adapter(config)
    seconds = time.monotonic() - start
    exact = exact_match(adapter, config, prompts=prompts)
    gpu = torch.cuda.get_device_name() if config.device != "cpu" and torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "class": "1 GPU" if gpu else f"{cores} CPU cores",
        "machine": gpu or platform.machine(),
        "seconds": round(seconds, 1),
        "exact_match": exact,
    }


def exact_match(adapter: Path, config: TrainConfig, *, prompts: int) -> Any:
    """Return the share of the suite's prompts that the adapter draws exactly right, with its interval."""
    controller = LLMController.from_pretrained(str(adapter))
    pipe = controller.load_pipeline()
    drawing: dict[str, Any] = {"steps": 20, "guidance_scale": 3.0}
    checker = load_checker("openmoji")
    systems = controller_systems(controller, pipe, control=None, **drawing)
    report = evaluate_suite(
        {"llm": systems["llm"]},
        scenes_suite(scene_prompts(prompts, 0, checker.world)),
        config.out / "evaluation",
        metrics=[SceneScorer(checker)],
        settings=drawing,
        seed=0,
    )
    return report["systems"]["llm"]["metrics"]["scenes"]


def page(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of docs/results/speed-record.md: the table, fastest first in each class, and how to enter."""
    classes = list(dict.fromkeys([*CLASSES, *(one["class"] for one in entries)]))
    rows = [["machine", "seconds", "exact match, %", "what", "command", "date"]]
    for name in classes:
        found = sorted((one for one in entries if one["class"] == name), key=lambda one: one["seconds"])
        rows += [
            [
                f"{name} ({one['machine']})",
                f"{one['seconds']:,.0f}",
                percent(one["exact_match"]),
                one["name"],
                f"`{one['command']}`",
                one["date"][:10],
            ]
            for one in found
        ] or [[name, "no entry yet", "", "", "", ""]]
    return f"""How many seconds of training does an adapter need until it draws {100 * GOAL:.0f} % of the embedded default's scenes exactly right? Whoever is faster, on whatever machine, can enter.

{markdown_table(rows)}

**The rules.** The base pipeline is the shipped one, frozen; the LLM, the adapter, the loss, the data order and every setting are yours, and so is the code. Captions come from `data.kind: scenes`, in which the held-out combinations, words and sentence forms do not occur. The clock runs from the start of the training with an empty store to the written adapter. The prompts are those of `llmdiff evaluate --suite scenes`, drawn in 20 steps at guidance 3; their mean has to reach {100 * GOAL:.0f} %.

**To enter**, run

```text
python speed/speed_record.py configs/openmoji-smollm2.yaml training.steps=500 --name "shorter"
```

with your file and values, on a machine that does nothing else. It trains, evaluates, and adds a run that reaches the goal to `docs/results/speed-record.json` and to this table; send both files, the configuration and the change in the code, if any.
"""  # noqa: E501 (sentences of the page are not wrapped)


def enter(entry: Mapping[str, Any], record: Path) -> None:
    """Add an entry to the record and write its page beside it; returns nothing."""
    entries = (
        [*json.loads(record.read_text(encoding="utf-8"))["entries"], entry] if record.exists() else [entry]
    )
    write_whole(record, json.dumps({"goal": GOAL, "entries": entries}, indent=1) + "\n")
    write_whole(record.with_suffix(".md"), page(entries))


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure one run, enter it if it reaches the goal, and return its entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("changes", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--name", required=True, help="what the table says about the run")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of every split; fewer are no entry")
    parser.add_argument("--record", type=Path, default=Path("docs/results/speed-record.json"))
    chosen = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        places = [f"out={folder}/run", f"store={folder}/store"]
        config = load_config(chosen.config, [*chosen.changes, *places])
        entry = {
            "name": chosen.name,
            **timed_run(config, prompts=chosen.prompts),
            **provenance(command_line()),
        }
    reached = entry["exact_match"]["mean"] >= GOAL and chosen.prompts == PROMPTS
    if reached:
        enter(entry, chosen.record)
    print(
        f"{entry['seconds']} s, {percent(entry['exact_match'])} % exact match: "
        + (
            f"entered in {chosen.record}"
            if reached
            else f"no entry, expected {100 * GOAL:.0f} % of all prompts"
        )
    )
    return entry


if __name__ == "__main__":
    main()
