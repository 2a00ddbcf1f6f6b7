"""Can the exact scorer be trusted? Its verdicts on real renders against ground truth, and the chance level.

    python speed/scorer.py --out docs/results/scorer

Writes OUT.json and OUT.md. Minutes on one core.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from llmdiff.environment import command_line, versions
from llmdiff.evaluation.suites.scenes_check import SceneChecker
from llmdiff.openmoji.contents import World
from llmdiff_lab.inspection.scorer_check import check_scorer, scorer_tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checker", default="openmoji", help="a folder, or the packaged one")
    parser.add_argument("--renders", type=int, default=900)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="where to write, without suffix")
    chosen = parser.parse_args()
    checker = SceneChecker.from_pretrained(chosen.checker)
    world = World(objects=checker.objects)
    report = check_scorer(checker.read, world, renders=chosen.renders, seed=chosen.seed)
    report |= {
        "checker": chosen.checker,
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    chosen.out.with_suffix(".md").write_text(scorer_tables(report, markdown=True))
    print(scorer_tables(report))


if __name__ == "__main__":
    main()
