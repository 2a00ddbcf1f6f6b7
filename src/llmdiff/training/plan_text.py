"""A plan in words: tables for people, and the paragraph that every configuration carries in its header."""

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from llmdiff.errors import ConfigError
from llmdiff.files import write_whole
from llmdiff.language.kinds_table import markdown_table
from llmdiff.training.gpus import BANDWIDTH_SHARE, FLOPS_SHARE, LINK_SHARE
from llmdiff.training.plan import GpuPlan, Plan

_TITLE = "Planned cost"
_WIDTH = 118


def plan_text(plan: Plan) -> str:
    """Return a plan as Markdown tables."""
    trained = sum(plan.trained.values())
    parts = [
        _published(plan),
        _table("trained parameters", {**plan.trained, "all": trained}, _number),
        _table("frozen parameters", plan.frozen, _number),
        _memory(plan),
        _table(
            f"one pass of one process ({plan.tokens} tokens a caption)",
            plan.step_flops,
            lambda flops: _scaled(flops, "FLOP"),
        ),
        _gpus(plan),
        _table(
            f"store, of a sample ({_scaled(plan.cache_bytes, 'B')} for {plan.samples:,} samples)",
            plan.cache_bytes_per_sample,
            lambda size: _scaled(size, "B"),
        ),
        f"Assumed: {FLOPS_SHARE:.0%} of peak FLOP/s, {BANDWIDTH_SHARE:.0%} of memory bandwidth, {LINK_SHARE:.0%} of "
        "the link between GPUs, nothing overlapped. Left out: validation, sample pictures, reading pictures.",
    ]
    return "\n\n".join(part for part in parts if part)


def plan_paragraph(plan: Plan, command: str) -> str:
    """Return a plan in a few lines, for the header of the configuration that it is of."""
    memory = plan.memory
    rows = memory.sharded if plan.sharded else memory.whole
    on = "one GPU" if plan.processes == 1 else f"each of {plan.processes} GPUs"
    each = "; ".join(f"{gpu.name} {_speed(gpu)}" for gpu in plan.gpus if gpu.fits)
    return (
        f"{_TITLE} (`{command}`; counted, not measured): {_scaled(sum(plan.trained.values()), '')} parameters are "
        f"trained; {_scaled(sum(rows.values()), 'B')} of memory on {on}, "
        f"{_scaled(rows['activations'], 'B')} of it activations; the store takes {_scaled(plan.cache_bytes, 'B')} for "
        f"{plan.samples:,} samples. {each or 'It fits none of the GPUs that are known.'}."
    )


def write_header(path: Path, paragraph: str) -> None:
    """Put the paragraph into the header of a configuration, in place of an older one; returns nothing.

    Raises:
        ConfigError: the file does not begin with a comment.
        OutputError: it cannot be written.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    size = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not size:
        raise ConfigError(f"config {path} has no header: begin it with a comment that says what it is")
    wrapped = textwrap.wrap(paragraph, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    paragraphs = "\n".join(lines[:size]).split("\n#\n")
    kept = [one for one in paragraphs if not one.startswith(f"# {_TITLE}")]
    header = "\n#\n".join([*kept, "\n".join(f"# {line}" for line in wrapped)])
    write_whole(path, "\n".join([header, *lines[size:]]) + "\n")


def _speed(gpu: GpuPlan) -> str:
    days = f"{gpu.gpu_days:.1f} GPU-days" if gpu.gpu_days >= 0.1 else f"{24 * gpu.gpu_days:.2g} GPU-hours"
    return f"{_digits(gpu.samples_per_s)} samples/s, {days}"


def _memory(plan: Plan) -> str:
    whole, sharded = plan.memory.whole, plan.memory.sharded
    columns = ["DDP", "FSDP"] if plan.processes > 1 else ["one process"]
    sides = [whole, sharded][: len(columns)]
    rows = [[name, *(_scaled(side[name], "B") for side in sides)] for name in whole]
    rows.append(["all", *(_scaled(sum(side.values()), "B") for side in sides)])
    spared = " and ".join(
        f"{_scaled(size, 'B')} {name}"
        for name, size in zip(("without", "with"), plan.memory.activations.values(), strict=True)
    )
    table = markdown_table([f"memory of each of {plan.processes}", *columns], rows)
    return f"{table}\n\nActivations: {spared} gradient checkpointing."


def _gpus(plan: Plan) -> str:
    rows = [
        [
            gpu.name,
            "yes" if gpu.fits else "no",
            _digits(gpu.samples_per_s),
            f"{gpu.gpu_days:.3g}",
            f"{gpu.prepare_gpu_hours:.3g}",
        ]
        for gpu in plan.gpus
    ]
    header = [f"{plan.processes} of", "fits", "samples/s", "GPU-days", "GPU-hours to fill the store"]
    return markdown_table(header, rows)


def _published(plan: Plan) -> str:
    if not plan.published:
        return ""
    return f"Not to be had here, so taken from their published sizes: {', '.join(plan.published)}."


def _table(title: str, rows: Mapping[str, int], shown: Callable[[int], str]) -> str:
    return markdown_table([title, ""], [[name, shown(value)] for name, value in rows.items()])


def _number(count: int) -> str:
    return f"{count:,}"


def _scaled(value: float, unit: str) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_digits(value / size)} {letter}{unit}"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    """Three digits, as far as they say anything."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
