"""Can the exact scorer be trusted? Its verdicts on real renders against ground truth, and the chance level.

    python speed/scorer.py --out docs/results/scorer

Writes OUT.json and OUT.md. Minutes on one core.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from llmdiff.environment import command_line, versions
from llmdiff.evaluation.suites.scenes import load_checker
from llmdiff_lab.inspection.scorer_check import check_scorer, scorer_tables
from llmdiff_lab.world_build.checker_figures import checker_figures, figures_tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checker", default="openmoji", help="a folder, or the packaged one")
    parser.add_argument("--renders", type=int, default=900)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="where to write, without suffix")
    chosen = parser.parse_args()
    checker = load_checker(chosen.checker)
    options = {"renders": chosen.renders, "seed": chosen.seed}
    report = checker_figures(checker, **options) | check_scorer(checker.read, checker.world, **options)
    report |= {
        "checker": chosen.checker,
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    for markdown in (True, False):
        text = "\n\n".join(tables(report, markdown=markdown) for tables in (figures_tables, scorer_tables))
        if markdown:
            chosen.out.with_suffix(".md").write_text(text)
        else:
            print(text)


if __name__ == "__main__":
    main()
