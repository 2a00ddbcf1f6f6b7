"""The command `llmdiff`: one thin verb for each thing to do; the work is done elsewhere."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmdiff import __version__
from llmdiff.cli import batch as cli_batch
from llmdiff.cli import doctor as cli_doctor
from llmdiff.cli import draw as cli_draw
from llmdiff.cli import evaluate as cli_evaluate
from llmdiff.cli import plan as cli_plan
from llmdiff.cli import serve as cli_serve
from llmdiff.cli import train as cli_train
from llmdiff.cli import ui as cli_ui
from llmdiff.cli import world as cli_world
from llmdiff.errors import LLMDiffError
from llmdiff_lab.cli import benchmark as cli_benchmark
from llmdiff_lab.cli import compare_llms as cli_compare_llms
from llmdiff_lab.cli import inspect as cli_inspect
from llmdiff_lab.cli import study as cli_study

# Modules that import torch are imported inside the verbs: `llmdiff --help` answers at once.


class _Verbs(TyperGroup):
    """Prints our own errors as one line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LLMDiffError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


# Without rich: its import would take longer than all the rest of `llmdiff --help`.
app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Draw with a decoder-only LLM in control of a diffusers text-to-image pipeline.",
)
app.add_typer(cli_study.app, name="study")
app.add_typer(cli_inspect.app, name="inspect")
app.command("generate")(cli_draw.generate)
app.command("compare")(cli_draw.compare)
app.command()(cli_serve.serve)
app.command()(cli_evaluate.evaluate)
app.command()(cli_train.train)
app.command()(cli_train.prepare)
app.command()(cli_plan.plan)
app.command()(cli_batch.batch)
app.command()(cli_ui.ui)
app.command()(cli_doctor.doctor)
app.command()(cli_world.world)
app.command()(cli_benchmark.benchmark)
app.command("compare-llms")(cli_compare_llms.compare_llms)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line."""
    app(prog_name="llmdiff")


if __name__ == "__main__":
    main()
