"""What the commands `llmdiff` and `llmdiff-lab` share: one line for an error, `--version`."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmdiff import __version__
from llmdiff.errors import LLMDiffError


class _Verbs(TyperGroup):
    """Prints our own errors as one line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMDiffError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


def new_application(name: str, help: str) -> typer.Typer:
    """Return a command without verbs; it prints our errors as one line and has `--version`."""
    # Without rich: its import would take longer than all the rest of `llmdiff --help`.
    app = typer.Typer(
        cls=_Verbs,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=help,
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"{name} {__version__}")
            raise typer.Exit

    @app.callback()
    def _options(
        version: Annotated[
            bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    return app
