"""Format the help of every verb: whole summaries, plain names of types, and an example."""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

# Both names of help, and lines that are long enough for one option each; inner verbs inherit them.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# typer's names of types, and ours.
_PLAIN = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "path": "PATH"}
_TYPE = re.compile(r"<(?:list\[)?(.*?)\]?>")


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a help text, on one line."""
    return re.split(r"(?<=\.)\s", " ".join((text or "").split()), maxsplit=1)[0]


class _Help:
    """The parts of help that verbs and groups of verbs share."""

    help: str | None

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the summary that the list of verbs shows; it is not shortened."""
        return first_sentence(self.help)


class HelpfulGroup(_Help, TyperGroup):
    """A group of verbs, as `llmdiff` itself."""


class HelpfulCommand(_Help, TyperCommand):
    """A verb. Its epilog is an example command line below its options."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line: arguments first."""
        return [*(_shown(one) for one in self.params if one.param_type_name == "argument"), "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the tables of arguments and options."""
        for kind, title in (("argument", "Arguments"), ("option", "Options")):
            found = [one for one in self.get_params(ctx) if one.param_type_name == kind]
            records = [(one, one.get_help_record(ctx)) for one in found]
            rows = [
                (_shown(one) if kind == "argument" else _TYPE.sub(_plain, record[0]), record[1])
                for one, record in records
                if record is not None
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example, in one line."""
        if self.epilog:
            with formatter.section("Example"):
                formatter.write(f"{'':>{formatter.current_indent}}{self.epilog}\n")


def _shown(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _plain(found: re.Match[str]) -> str:
    return "|".join(_PLAIN.get(name, name) for name in found[1].split("|"))
