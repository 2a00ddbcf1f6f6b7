"""Pages that are made from the code and from docs/results/*.json while the documentation is built."""

import importlib
import json
import pkgutil
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import typer.main
from claims import claims_text
from inside_pages import inside_findings, inside_page, kind_of, opening

from llmdiff.evaluation.tables import markdown_table, report_tables

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results"

# What the pages of packages are headed; a package that is not here is headed by its name alone.
HEADINGS = {
    "llmdiff": "the controller, types and errors",
    "llmdiff.language": "text to encoding",
    "llmdiff.adapter": "encoding to denoiser",
    "llmdiff.drawing": "drawing pictures",
    "llmdiff.training": "training an adapter",
    "llmdiff.evaluation": "evaluation",
    "llmdiff.serving": "the page and the image API",
    "llmdiff.openmoji": "the embedded default",
    "llmdiff.workers": "many jobs at once",
    "llmdiff_lab": "the laboratory",
    "llmdiff_lab.rivals": "other ways to condition",
    "llmdiff_lab.comparison": "comparing systems and LLMs",
    "llmdiff_lab.inspection": "looking inside",
    "llmdiff_lab.study": "user studies",
    "llmdiff_lab.world_build": "building the embedded default",
}

# What the pages of results are headed; others by the name of their record.
RESULT_TITLES = {
    "attention": "Where the picture follows a word",
    "benchmark": "Ways to condition, trained alike",
    "benchmark-parts": "Ours with single parts removed",
    "benchmark-refined": "Encodings, each with the refiner",
    "compare-llms": "Several LLMs, the same adapter",
    "denoising": "Is an LLM a diffusion model?",
    "performance": "Speed and memory",
    "pointing": "The pointing game",
    "probes": "What linear probes recover",
    "proxy": "With a closed LLM by proxy",
    "scale": "How much LLM draws best",
    "scenes": "Base and LLM on the scenes",
    "scorer": "How good the scorer is",
    "scores": "What every block does",
    "speed-record": "The speed record",
    "training-speed": "The speed of training",
    "warm-start": "The start from text alone",
}


def write_pages(folder: Path) -> None:
    """Write every generated page into a folder; returns nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "command-line.md": command_line(),
        "configuration.md": configuration(),
        "findings.inc": findings(),
        "claims.inc": claims_text(RESULTS),
    }
    for package in packages():
        pages[f"api-{package}.md"] = api_page(package)
    for path in sorted(RESULTS.glob("*.json")):
        pages[f"results-{path.stem}.md"] = result_page(path)
    for name, text in pages.items():
        place = folder / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")
    for old in set(folder.iterdir()) - {folder / name for name in pages}:
        old.unlink()


# The reference.


def packages() -> list[str]:
    """Return both import packages and those inside: the headings' in their order, then what others there are."""
    found = {
        f"{top}.{one.name}"
        for top in ("llmdiff", "llmdiff_lab")
        for one in pkgutil.iter_modules(importlib.import_module(top).__path__)
        if one.ispkg and one.name != "cli"
    }
    return [*HEADINGS, *sorted(found - set(HEADINGS))]


def api_page(package: str) -> str:
    """Return a page with every public name of a package and those in it; of an import package, of its modules only."""
    top = importlib.import_module(package)
    is_root = "." not in package
    walk = pkgutil.iter_modules if is_root else pkgutil.walk_packages
    names = [one.name for one in walk(top.__path__, f"{package}.") if not (is_root and one.ispkg)]
    heading = HEADINGS.get(package)
    lines = [f"# `{package}`" + (f": {heading}" if heading else ""), ""]
    if package == "llmdiff":
        lines += ["`from llmdiff import ...` gives:", ""]
        lines += [f"- `{name}`" for name in top.__all__ if not name.startswith("_")] + [""]
    elif top.__doc__:
        lines += ["```{eval-rst}", f".. automodule:: {package}", "   :no-members:", "```", ""]
    for name in names:
        lines += [f"## `{name}`", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
    return "\n".join(lines)


def command_line() -> str:
    """Return a page with every verb of `llmdiff` and `llmdiff-lab`, its arguments and options."""
    from llmdiff.cli.main import app
    from llmdiff_lab.cli.main import app as laboratory

    root, lab = typer.main.get_command(app), typer.main.get_command(laboratory)
    lines = ["# The command line", "", _sentence(root.help), ""]
    lines += [
        "What goes wrong is one line that begins with `error:`, and exit status 1; a wrong option is 2.",
        "",
    ]
    lines += _verbs("llmdiff", root)
    lines += ["# The laboratory's command line", "", _sentence(lab.help), ""]
    return "\n".join([*lines, *_verbs("llmdiff-lab", lab)])


def _verbs(path: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from [f"## `{full}`", "", _sentence(command.help), ""]
            yield from _verbs(full, command)
            continue
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        usage = " ".join([full, *(one.metavar or one.name.upper() for one in arguments), "[OPTIONS]"])
        yield from [f"{'###' if ' ' in path else '##'} `{full}`", "", _sentence(command.help), ""]
        yield from ["```text", usage, "```", ""]
        yield from ["```bash", command.epilog, "```", ""]
        rows = [["option", "default", ""]]
        for option in command.params:
            names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
            if option.param_type_name == "argument":
                names = f"`{option.metavar or option.name.upper()}`"
            rows.append([names, _default(option), _cell(getattr(option, "help", "") or "")])
        yield from [markdown_table(rows, left=3) if command.params else "", ""]


def _default(option: Any) -> str:
    if option.required:
        return "needed"
    value = option.default
    if value is None or value == () or "Sentinel" in type(value).__name__:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"`{getattr(value, 'value', value)}`"


def configuration() -> str:
    """Return a page with every key of a training run's configuration."""
    from llmdiff.training import config

    lines = ["# The configuration of a training run", ""]
    lines += ["`llmdiff train CONFIG.yaml section.key=value ...` reads these keys, and no others; see ", ""]
    lines[-2] = lines[-2].rstrip() + " [how to train](../how-to/train.md)."
    sections = {"": config.TrainConfig, "models": config.ModelsConfig, "data": config.DataConfig}
    sections |= {"training": config.TrainingConfig, "watch": config.WatchConfig}
    for name, model in sections.items():
        lines += [f"## {f'`{name}`' if name else 'At the top'}", ""]
        lines += [*(model.__doc__ or "").replace("\n    ", "\n").strip().splitlines(), ""]
        rows = [["key", "default", "values"]]
        for key, field in model.model_fields.items():
            if key in sections:
                rows.append([f"`{key}`", "", "the section below"])
                continue
            default = "needed" if field.is_required() else f"`{_yaml(field.default)}`"
            limits = ", ".join(filter(None, map(_limit, field.metadata)))
            rows.append([f"`{key}`", default, _cell(_kind(field.annotation)) + (limits and f", {limits}")])
        lines += [markdown_table(rows, left=3), ""]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return json.dumps(value, default=str)


def _limit(constraint: Any) -> str:
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join(
        f"{word} {getattr(constraint, name):,}" for name, word in signs.items() if hasattr(constraint, name)
    )


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " or ".join(_kind(one) for one in inner)
    if str(origin) == "typing.Literal":
        return ", ".join(f"`{one}`" for one in inner)
    if str(origin) == "typing.Annotated" or getattr(annotation, "__metadata__", None):
        limits = [
            _limit(one) for part in annotation.__metadata__ for one in getattr(part, "metadata", [part])
        ]
        return ", ".join([_kind(inner[0]), *filter(None, limits)])
    if origin is tuple:
        return f"a list: {_kind(inner[0])}"
    names = {type(None): "null", str: "text", int: "a whole number", float: "a number", bool: "yes or no"}
    return names.get(
        annotation, "a path" if annotation is Path else getattr(annotation, "__name__", str(annotation))
    )


# The results.


def title_of(path: Path) -> str:
    """Return the heading of a record's page."""
    return RESULT_TITLES.get(path.stem, path.stem)


def result_page(path: Path) -> str:
    """Return the page of one recorded result."""
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"# {title_of(path)}", ""]
    source = f"[`docs/results/{path.name}`](../results/{path.name})"
    end = ["", f"All that was recorded: {source}.", ""]
    if "claims" in record or "entries" in record:  # of speed: their scripts wrote the pages
        return "\n".join([*lines, _beside(path), *end])
    if kind_of(record) == "benchmark":
        lines += opening(record)
    command = record.get("command")
    if command:
        lines += ["Made with", "", "```text", command, "```", ""]
    if record.get("date"):
        lines += [f"on {record['date'][:10]}.", ""]
    if kind_of(record) is not None:
        lines += inside_page(record, path)
    elif "systems" in record and "suite" in record:
        lines += [*_evaluation(record)]
    else:
        lines += [*_record(record, 2)]
    return "\n".join([*lines, *end])


def _beside(path: Path) -> str:
    """Return the text that was written beside a record, its pictures found from the folder of the pages."""
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    return text.replace("](", "](../results/").rstrip()


def _evaluation(record: Mapping[str, Any]) -> Iterator[str]:
    yield report_tables(record, markdown=True)
    splits = [[split, _cell(what)] for split, what in record["suite"]["meanings"].items()]
    yield from [
        "## What the splits are",
        "",
        markdown_table([["split", "what is new in it"], *splits], left=2),
        "",
        "## Where the intervals leave no doubt",
        "",
        *_verdicts(record),
        "",
    ]
    for heading in ("settings", "seconds_per_image", "checker", "versions"):
        if isinstance(record.get(heading), dict):
            yield from [f"## {heading.replace('_', ' ').capitalize()}", "", _table(record[heading]), ""]


def _verdicts(record: Mapping[str, Any]) -> Iterator[str]:
    """Say of every difference whether its interval holds zero."""
    for name, figures in record["systems"].items():
        gaps = figures.get("differences_to_base")
        if gaps is None:
            continue
        verdicts: dict[str, list[str]] = {
            f"`{name}` follows better": [],
            "`base` follows better": [],
            "not decided": [],
        }
        better, worse, open_ = verdicts
        of_tags = {tag: found["scenes"] for tag, found in gaps["metrics_by_tag"].items()}
        for split, gap in {"all": gaps["metrics"]["scenes"], **of_tags}.items():
            key = better if gap["low"] > 0 else worse if gap["high"] < 0 else open_
            verdicts[key].append(f"{split} ({100 * gap['mean']:+.1f} points)")
        yield from (f"- {verdict}: {', '.join(splits) or 'nowhere'}" for verdict, splits in verdicts.items())


def _record(record: Mapping[str, Any], level: int) -> Iterator[str]:
    """Return any nested record: numbers as a table, records of like records as one table, others as sections."""
    plain = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    plain = {key: value for key, value in plain.items() if key not in ("command", "date", "how")}
    if plain:
        yield from [_table(plain), ""]
    for key, value in record.items():
        if not isinstance(value, dict | list) or not value:
            continue
        yield from [f"{'#' * min(level, 6)} {_cell(str(key).replace('_', ' '))}", ""]
        rows = dict(enumerate(value)) if isinstance(value, list) else value
        if all(
            isinstance(row, dict) and not any(isinstance(x, dict) for x in row.values())
            for row in rows.values()
        ):
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            body = [
                [_cell(str(name)), *(_number(row.get(column, "")) for column in columns)]
                for name, row in rows.items()
            ]
            yield from [markdown_table([["", *(_cell(str(column)) for column in columns)], *body]), ""]
        elif isinstance(value, dict):
            yield from _record(value, level + 1)
        else:
            yield from [", ".join(_number(one) for one in value), ""]


def _table(values: Mapping[str, Any]) -> str:
    rows = [[_cell(str(name).replace("_", " ")), _number(value)] for name, value in values.items()]
    return markdown_table([["", ""], *rows], left=2)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _cell(str(value))


def findings() -> str:
    """Return what was measured for and against the method, from every recorded evaluation."""
    lines: list[str] = []
    others: list[str] = []
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if inside := inside_findings(record):
            lines += [f"**[{title_of(path)}](../generated/results-{path.stem}.md)**:", "", *inside, ""]
        elif "systems" in record and "suite" in record:
            lines += [
                f"**[{title_of(path)}](../generated/results-{path.stem}.md)**, {record['suite']['prompts']} prompts:",
                "",
            ]
            lines += [*_verdicts(record), ""]
        else:
            others.append(f"[{title_of(path)}](../generated/results-{path.stem}.md)")
    if others:
        lines += [f"Also recorded: {', '.join(others)}.", ""]
    return "\n".join(lines)


def _sentence(text: str | None) -> str:
    return " ".join((text or "").replace("[bold]", "").split())


def _cell(text: str) -> str:
    return _sentence(text).replace("<", "&lt;").replace("$", "\\$").replace("*", "\\*")


def _write(app: Any) -> None:
    write_pages(DOCS / "generated")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
