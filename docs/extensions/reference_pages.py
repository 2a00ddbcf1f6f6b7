"""Pages of the reference: packages, the command line, the configuration."""

import importlib
import json
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer.main
from page_text import cell, one_line

from llmdiff.evaluation.tables import markdown_table

# Headings of the pages of packages; others have the package's name alone.
HEADINGS = {
    "llmdiff": "the controller, types and errors",
    "llmdiff.language": "text to encoding",
    "llmdiff.adapter": "encoding to denoiser",
    "llmdiff.drawing": "drawing pictures",
    "llmdiff.training": "training an adapter",
    "llmdiff.evaluation": "evaluation",
    "llmdiff.serving": "the page and the image API",
    "llmdiff.world": "the embedded default",
    "llmdiff.workers": "many jobs at once",
    "llmdiff_lab": "the laboratory",
    "llmdiff_lab.rivals": "other ways to condition",
    "llmdiff_lab.comparison": "comparing systems and LLMs",
    "llmdiff_lab.inspection": "looking inside",
    "llmdiff_lab.study": "user studies",
    "llmdiff_lab.world_build": "building the embedded default",
}


def packages() -> list[str]:
    """Return both import packages and their subpackages: those of HEADINGS in order, then the others."""
    found = {
        f"{top}.{one.name}"
        for top in ("llmdiff", "llmdiff_lab")
        for one in pkgutil.iter_modules(importlib.import_module(top).__path__)
        if one.ispkg and one.name != "cli"
    }
    return [*HEADINGS, *sorted(found - set(HEADINGS))]


def api_page(package: str) -> str:
    """Return a page with every public name of a package; for an import package, of its modules without subpackages."""
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
    lines = ["# The command line", "", one_line(root.help), ""]
    lines += [
        "An error is one line that begins with `error:`, with exit status 1; a wrong option has exit status 2.",
        "",
    ]
    lines += _verbs("llmdiff", root)
    lines += ["# The laboratory's command line", "", one_line(lab.help), ""]
    return "\n".join([*lines, *_verbs("llmdiff-lab", lab)])


def _verbs(path: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from [f"## `{full}`", "", one_line(command.help), ""]
            yield from _verbs(full, command)
            continue
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        usage = " ".join([full, *(one.metavar or one.name.upper() for one in arguments), "[OPTIONS]"])
        yield from [f"{'###' if ' ' in path else '##'} `{full}`", "", one_line(command.help), ""]
        yield from ["```text", usage, "```", ""]
        yield from ["```bash", command.epilog, "```", ""]
        rows = [["option", "default", ""]]
        for option in command.params:
            names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
            if option.param_type_name == "argument":
                names = f"`{option.metavar or option.name.upper()}`"
            rows.append([names, _default(option), cell(getattr(option, "help", "") or "")])
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
    lines += ["`llmdiff train CONFIG.yaml section.key=value ...` reads these keys, and no others; see"]
    lines[-1] += " [how to train](../how-to/train.md)."
    lines += [""]
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
            rows.append([f"`{key}`", default, cell(_kind(field.annotation)) + (limits and f", {limits}")])
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
