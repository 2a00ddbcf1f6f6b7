"""Pages and findings of docs/results about LLMs and rivals: probes, denoising, pointing, scores, LLMs, benchmark."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdiff.evaluation.tables import markdown_table, percent

Record = Mapping[str, Any]


def kind_of(record: Any) -> str | None:
    """Return the kind of a record; None for other records."""
    if not isinstance(record, Mapping):
        return None
    marks = {
        "probes": ("table", "differences", "reference"),
        "denoising": ("models",),
        "pointing": ("scenes", "chance", "both"),
        "compare-llms": ("llms", "base", "system"),
        "proxy": ("reword_model", "splits", "examples"),
        "benchmark": ("systems", "treatment"),
        "scores": ("score_norm", "gains", "sink"),
        "attention": ("words", "side", "both"),
    }
    return next((kind for kind, keys in marks.items() if all(key in record for key in keys)), None)


def inside_page(record: Record, path: Path) -> list[str]:
    """Return the lines of a record's page, with its plot first if there is one."""
    kind = kind_of(record)
    picture = path.with_suffix(".png")
    lines = [f"![{path.stem}](../results/{picture.name})", ""] if picture.exists() else []
    if kind == "probes":
        from llmdiff_lab.inspection.probe_plots import probe_tables

        lines += [probe_tables(record), "", _settings(record)]
    elif kind == "compare-llms":
        from llmdiff_lab.comparison.compare_page import comparison_tables

        lines += [comparison_tables(record), "", *(f"- {one}" for one in record["treatment"])]
    elif kind == "benchmark":
        from llmdiff_lab.comparison.tables import benchmark_tables, machine_of

        lines += [benchmark_tables(record), f"Hardware: {machine_of(record)}."]
    elif kind == "denoising":
        lines += [_denoising_table(record)]
    elif kind == "pointing":
        rows = [[name, _accuracy(record[name]), str(record[name]["n"])] for name in _branches(record)]
        lines += [
            markdown_table([["branch", "hits, %", "objects"], *rows]),
            "",
            f"{record['scenes']} scenes; chance: {100 * record['chance']:.1f} %.",
        ]
    elif kind == "proxy":
        lines += list(_proxy_table(record))
    elif kind == "scores":
        lines += [f"Prompt: {record['prompt']}", "", _sink(record)]
    else:
        lines += [f"Prompt: {record['prompt']}"]
    return lines


def opening(record: Record) -> list[str]:
    """Return how the page of a benchmark begins: a chart and three sentences."""
    from llmdiff_lab.comparison.plots import accuracy_plot

    systems, ours = record["systems"], record["ours"]
    best = max(systems, key=lambda name: systems[name]["held_out"]["mean"])
    sentences = [
        f"Of {len(systems)} systems, `{best}` ({systems[best]['title']}) draws most held-out prompts exactly right: "
        f"{_accuracy(systems[best]['held_out'])} %"
        + (
            f"; the base as it is draws {_accuracy(systems['base']['held_out'])} %."
            if "base" in systems and best != "base"
            else "."
        )
    ]
    gap = systems[best].get("ours_above", {}).get("held_out")
    if gap is not None:
        over = [f"{percent(gap, sign=True)} points over prompts"]
        if "over_seeds" in gap:
            over += [f"{percent(gap['over_seeds'], sign=True)} over trainings"]
        sentences += [
            f"Ours, `{ours}`, draws {_accuracy(systems[ours]['held_out'])} %, against `{best}` {', '.join(over)}."
        ]
    elif best == ours:
        sentences += [f"`{ours}` is ours."]
    longer = ", ".join(f"`{name}` excepted" for name in systems if "-x" in name)
    sentences += [
        f"Every trained system saw the same captions for as many steps{longer and f' ({longer})'}, and all drew the "
        f"same {record['suite']['prompts']} prompts; held out are those with combinations, words or sentence forms "
        "that no training caption has."
    ]
    chart = accuracy_plot(systems)
    return [
        f"![Held-out accuracy of every system, with 95 % intervals]({chart})",
        "",
        " ".join(sentences),
        "",
    ]


def inside_findings(record: Record) -> list[str]:
    """Return the findings of a record for and against the paper, as list items; empty for records of pictures."""
    findings = {
        "probes": _probe_findings,
        "denoising": _denoising_findings,
        "pointing": _pointing_findings,
        "compare-llms": _llm_findings,
        "proxy": _proxy_findings,
        "benchmark": _benchmark_findings,
        "scores": lambda record: iter([f"- {_sink(record)}"]),
    }
    kind = kind_of(record)
    return list(findings[kind](record)) if kind in findings else []


def _probe_findings(record: Record) -> Iterator[str]:
    """Yield a finding per encoding: scores that estimate the context have at least the content of the last layer."""
    reference = record["reference"]
    for encoding, splits in record["differences"].items():
        gaps = {split: row["objects"] for split, row in splits.items() if "objects" in row}
        verdicts = _by_verdict(gaps, "more", "less")
        yield f"- objects that a linear probe reads from {encoding}, against {reference}: {verdicts}"


def _denoising_findings(record: Record) -> Iterator[str]:
    for report in record["models"]:
        blocks = len(report["blocks"]) - 1
        yield (
            f"- {_short(report['model'])} ({report['kind']}): {100 * report['monotone']:.1f} % of tokens come nearer "
            f"to their final state in every block; {report['steps_back']:.1f} of {blocks} blocks lead away, on average"
        )


def _denoising_table(record: Record) -> str:
    rows = [[
        "model", "kind", "before block", "distance", "cosine", "final state, R2", "own token, %", "next token, %",
    ]]  # fmt: skip
    for report in record["models"]:
        last = len(report["blocks"]) - 1
        for depth in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
            block = report["blocks"][depth]
            cells = [f"{block[name]['mean']:.2f}" for name in ("distance", "cosine")]
            cells += [f"{block['final_r2']:.2f}"]
            cells += [_share(block[name]) for name in ("own_token", "next_token")]
            rows.append([_short(report["model"]), report["kind"], str(depth), *cells])
    return markdown_table(rows, left=2)


def _pointing_findings(record: Record) -> Iterator[str]:
    for name in _branches(record):
        row = record[name]
        if not row["n"]:
            continue
        verdict = "above chance" if row["low"] > record["chance"] else "not above chance"
        yield (
            f"- attention maps ({name}) point at the named object in {_accuracy(row)} % of {row['n']} objects; "
            f"chance {100 * record['chance']:.0f} %: {verdict}"
        )


def _llm_findings(record: Record) -> Iterator[str]:
    for name, row in record["llms"].items():
        size = f"{row['parameters'] / 1e6:,.0f} M parameters"
        text = f"- {_short(name)} ({size}): {_accuracy(row['held_out'])} % of held-out prompts exact"
        if row["differences_to_smallest"] is not None:
            gap = row["differences_to_smallest"]["held_out"]
            word = "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "not decided"
            text += f"; against the smallest LLM {100 * gap['mean']:+.1f} points, {word}"
        yield text


def _benchmark_findings(record: Record) -> Iterator[str]:
    """Yield the verdict on the differences of our system to each other system."""
    for name, system in record["systems"].items():
        gaps = system.get("ours_above")
        if gaps is None:
            continue
        verdicts = _by_verdict({part.replace("_", " "): gap for part, gap in gaps.items()}, "better", "worse")
        yield f"- {record['ours']} against {name} ({system['title']}): {verdicts}"


def _by_verdict(gaps: Mapping[str, Record], above: str, below: str) -> str:
    """Return which differences have an interval above zero, below zero, or around zero."""
    verdicts: dict[str, list[str]] = {above: [], below: [], "not decided": []}
    for name, gap in gaps.items():
        verdict = above if gap["low"] > 0 else below if gap["high"] < 0 else "not decided"
        verdicts[verdict].append(f"{name} ({100 * gap['mean']:+.0f} points)")
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items() if names)


def _proxy_findings(record: Record) -> Iterator[str]:
    for split, row in record["splits"].items():
        gain = row["gain"]
        word = "a gain" if gain["low"] > 0 else "a loss" if gain["high"] < 0 else "not decided"
        yield (
            f"- {split}: {_short(record['reword_model'])} by proxy answers {100 * row['answered']:.0f} % of the "
            f"prompts and brings {100 * gain['mean']:+.1f} points over the LLM alone, {word}; an answer that says in "
            f"plain words what is meant brings {percent(row['gain_told'], sign=True)}"
        )


def _proxy_table(record: Record) -> Iterator[str]:
    rows = [[
        "exact match, %", "base", "llm", "llm reworded", "gain, points", "answered, %", "llm told", "gain, points",
    ]]  # fmt: skip
    for split, row in record["splits"].items():
        cells = [_share(row["accuracy"][name]) for name in ("base", "llm", "llm reworded")]
        cells += [percent(row["gain"], sign=True), f"{100 * row['answered']:.0f}"]
        cells += [_share(row["accuracy"]["llm told"]), percent(row["gain_told"], sign=True)]
        rows.append([split, *cells])
    yield from [
        markdown_table(rows),
        "",
        f"Closed LLM: {_short(record['reword_model'])}. Told: the answer is what the scene holds, in plain words.",
        "",
    ]
    examples = [[_plain(row["prompt"]), _plain(row["answer"]) or "(none)"] for row in record["examples"]]
    yield markdown_table([["prompt", "answer"], *examples], left=2)


def _plain(text: str) -> str:
    """Return a closed LLM's words as the text of a cell, with markup escaped."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#$~" else letter for letter in text)


def _sink(record: Record) -> str:
    sink = record["sink"]
    return (
        f"The largest context update of the prompt has {sink['text'].strip()!r} in block {sink['block']}: "
        f"{sink['context_norm']:,.0f}, against a median of {sink['median_context_norm']:,.1f}; once the lone update is "
        f"subtracted, {sink['score_norm']:,.0f} is left."
    )


def _settings(record: Record) -> str:
    rows = [["setting", ""]]
    for name, value in record["settings"].items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        rows.append([name, ", ".join(map(str, value)) if several else str(value)])
    return markdown_table(rows, left=2)


def _branches(record: Record) -> list[str]:
    return [name for name in ("both", "pretrained", "new") if name in record]


def _accuracy(row: Mapping[str, float]) -> str:
    return percent(row) if row["n"] else "-"


def _share(row: Mapping[str, float]) -> str:
    return percent(row, digits=0)


def _short(name: str) -> str:
    return Path(name).name
