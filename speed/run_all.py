"""Runs the benchmarks of speed and writes docs/results/performance.{json,md}: python speed/run_all.py

Each benchmark is a process of its own. What one has measured is kept under out/speed/COMMIT/, so a stopped run
goes on where it was, and nothing of the same commit is measured twice unless `--again` asks for it. With changes that
are not committed, everything is measured anew. `--only` measures some, and leaves what is recorded of the others as it
is; every claim carries the commit that it was measured at.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import Record, table

from llmdiff.files import write_whole

ROOT = Path(__file__).parents[1]
BENCHMARKS = ("encoding", "caching", "drawing", "launches", "one_product", "startup", "memory", "training_step",
              "scaling", "paired")  # fmt: skip


def commit() -> tuple[str, bool]:
    """Return the commit of this tree, and whether code has been changed since."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "--", "src", "speed"))


def measure(name: str, kept: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the record of a benchmark, measured now or before; None if it failed."""
    line = [
        sys.executable,
        str(Path(__file__).with_name(f"{name}.py")),
        "--device",
        options.device,
        "--out",
        str(kept),
    ]
    line += ["--quick"] if options.quick else []
    line += [] if options.repeats is None else ["--repeats", str(options.repeats)]
    line += [str(options.against)] if name == "paired" else []
    line += ["--plots", str(options.results)] if name == "scaling" else []
    if not kept.is_file():
        print(f"\n## {name}", flush=True)
        began = time.monotonic()
        if subprocess.run(line, cwd=ROOT, check=False).returncode:
            print(f"{name} failed after {time.monotonic() - began:.0f} s", file=sys.stderr)
            return None
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def bounds(records: Sequence[Record]) -> list[str]:
    """Return a line for every missed aim, with its known cause."""
    lines = []
    for one in records:
        if one.get("holds", True):
            continue
        figure = one["ours"] if one["aim"].startswith("ours") else one["ratio"]
        limit = one.get("limit_by_flops")
        reasons = [one["bound"]] if "bound" in one else []
        if limit is not None:
            reasons.append(f"by counted FLOPs alone the ratio would be {limit:.3g}")
        said = "; ".join(reasons) or "nothing was counted that would bound it"
        lines.append(f"- {one['name']}: {figure:.3g}, aim {one['aim']}; {said}.")
    return lines


def details(records: Sequence[Record]) -> list[str]:
    """Return a line for every record with a remark."""
    known = {"name", "ratio", "ours", "other", "unit", "aim", "holds", "machine", "versions", "points"}
    known |= {"benchmark", "commit", "bound"}
    lines = []
    for one in records:
        more = {key: value for key, value in one.items() if key not in known}
        if more:
            lines.append(f"- {one['name']}: {', '.join(_said(key, value) for key, value in more.items())}.")
    return lines


def _said(key: str, value: Any) -> str:
    name = key.replace("_", " ")
    if isinstance(value, Mapping):
        return f"{name} ({', '.join(_said(inner, number) for inner, number in value.items())})"
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


def page(summary: Mapping[str, Any], records: Sequence[Record], *, plots: bool) -> str:
    """Return performance.md, with scaling.png where it was drawn."""
    command = summary["command"]
    lines = ["Made with `python speed/run_all.py`, which measures these side by side and in turns."]
    lines += [f"Last run: `{command}`, {summary['date'][:10]}.", ""]
    commits: dict[str, list[str]] = {}
    for one in records:
        names = commits.setdefault(one["commit"], [])
        names += [one["benchmark"]] if one["benchmark"] not in names else []
    lines += ["; ".join(f"{', '.join(names)} at commit {key}" for key, names in commits.items()) + ".", ""]
    lines += [
        f"Machine: {summary['machine']}. "
        + ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
        + "."
    ]
    lines += ["", table(records), ""]
    missed = bounds(records)
    if missed:
        lines += ["Aims that are missed, and what bounds them:", "", *missed, ""]
    if plots:
        lines += ["![encoding and drawing as the work grows](scaling.png)", ""]
    return "\n".join([*lines, "More of what was recorded:", "", *details(records), ""])


def kept_records(summary: Mapping[str, Any], measured: Collection[str]) -> list[Record]:
    """Return the records of an earlier run for the benchmarks that are not measured now."""
    shared = {"machine": summary["machine"], "versions": summary["versions"]}
    return [
        {"name": name, **claim, **summary["details"].get(name, {}), **shared}
        for name, claim in summary["claims"].items()
        if claim["benchmark"] not in measured
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options_of = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options_of.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    options_of.add_argument("--quick", action="store_true", help="tiny models, to see that all run")
    options_of.add_argument("--again", action="store_true", help="measure again what is there")
    options_of.add_argument("--device", default="cpu")
    options_of.add_argument("--repeats", type=int)
    options_of.add_argument("--kept", type=Path, default=ROOT / "out" / "speed")
    options_of.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    options_of.add_argument("--against", type=Path, metavar="TREE", help="another tree, for paired")
    options = options_of.parse_args(arguments)
    if options.against is None:
        options.only = [name for name in options.only if name != "paired"]
        if not options.only:
            options_of.error("paired needs the other tree: --against TREE")
    revision, changed = commit()
    named = revision + (" with changes" if changed else "")
    folder = (
        options.kept / f"{revision}-{options.device.replace(':', '-')}{'-quick' if options.quick else ''}"
    )
    records: list[Record] = []
    failed = []
    for name in options.only:
        kept = folder / f"{name}.json"
        if options.again or changed:
            kept.unlink(missing_ok=True)
        found = measure(name, kept, options)
        if found is None:
            failed.append(name)
        else:
            records += [one | {"benchmark": name, "commit": named} for one in found["records"]]
    if not records:
        return 1
    path = options.results / "performance.json"
    if path.is_file() and set(options.only) != set(BENCHMARKS):
        records += kept_records(json.loads(path.read_text(encoding="utf-8")), set(options.only))
        records.sort(key=lambda one: BENCHMARKS.index(one["benchmark"]))
    given = sys.argv[1:] if arguments is None else list(arguments)
    summary = {
        "command": " ".join(["python speed/run_all.py", *given]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "machine": records[0]["machine"],
        "versions": records[0]["versions"],
    }
    shared = ("name", "machine", "versions")
    claims = {one["name"]: {key: value for key, value in one.items() if key not in shared} for one in records}
    # Figures first, as one table; what is nested comes after it.
    nested = {
        name: {key: value for key, value in one.items() if isinstance(value, dict | list)}
        for name, one in claims.items()
    }
    flat = {
        name: {key: value for key, value in one.items() if not isinstance(value, dict | list)}
        for name, one in claims.items()
    }
    summary |= {"claims": flat, "details": {name: one for name, one in nested.items() if one}}
    options.results.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(summary, indent=1) + "\n")
    write_whole(
        options.results / "performance.md",
        page(summary, records, plots=(options.results / "scaling.png").is_file()),
    )
    print(f"\n{options.results / 'performance.md'}")
    if failed:
        print(f"error: failed: {', '.join(failed)}; run again to try only those", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
