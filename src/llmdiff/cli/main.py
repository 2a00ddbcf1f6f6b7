"""The command `llmdiff`: one thin verb for each thing to do; the work is done elsewhere."""

import os
import signal
import sys
from types import FrameType
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
from llmdiff.cli.options import Verb
from llmdiff.errors import LLMDiffError, first_line
from llmdiff_lab.cli import benchmark as cli_benchmark
from llmdiff_lab.cli import compare_llms as cli_compare_llms
from llmdiff_lab.cli import inspect as cli_inspect
from llmdiff_lab.cli import study as cli_study

# Modules that import torch are imported inside the verbs: `llmdiff --help` answers at once.

_TRACEBACK = "--traceback"
_EXIT_INTERRUPTED, _EXIT_INTERNAL = 130, 70  # as a shell says SIGINT; EX_SOFTWARE of sysexits.h


class _Verbs(TyperGroup):
    """Prints our own errors, and the system's about files, as one line; anything else is a bug, see `main`."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except LLMDiffError as error:
            _say(str(error))
        except OSError as error:
            # A full disk, a read-only folder, a name that is too long: whatever was meant to be there.
            if error.strerror is None:
                raise
            _say(
                f"{error.filename or 'a file or the standard output'} cannot be used ({error.strerror}): check the "
                "path, its rights and the room on its disk"
            )
        sys.exit(1)


def _say(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


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
app.command("generate", cls=Verb)(cli_draw.generate)
app.command("compare", cls=Verb)(cli_draw.compare)
app.command(cls=Verb)(cli_serve.serve)
app.command(cls=Verb)(cli_evaluate.evaluate)
app.command(cls=Verb)(cli_train.train)
app.command(cls=Verb)(cli_train.prepare)
app.command(cls=Verb)(cli_plan.plan)
app.command(cls=Verb)(cli_batch.batch)
app.command(cls=Verb)(cli_ui.ui)
app.command(cls=Verb)(cli_doctor.doctor)
app.command(cls=Verb)(cli_benchmark.benchmark)
app.command("compare-llms", cls=Verb)(cli_compare_llms.compare_llms)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="Show the traceback of an internal error.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an exception that nothing expected is one line, and exit status 70."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored: nohup
        signal.signal(signal.SIGINT, _Interrupts())
    code: Any = 0
    try:
        app(prog_name="llmdiff")
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
    except Exception as error:
        if _TRACEBACK in sys.argv:
            raise
        name = type(error).__name__
        typer.echo(
            f"internal error: {name}: {first_line(error)} (`llmdiff {_TRACEBACK} ...` shows where; please report it)",
            err=True,
        )
        code = _EXIT_INTERNAL
    sys.exit(_flushed(code))


def _flushed(code: Any) -> Any:
    """Return the exit status once all that was printed is written: 1 where it cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its end, and print what went wrong in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _say(f"standard output cannot be written ({error.strerror}): send it somewhere else")
        return code or 1
    return code


class _Interrupts:
    """Ctrl-C ends at once while libraries are imported, which may swallow it, and wherever it comes again."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._asked or _is_importing(frame):
            os._exit(_EXIT_INTERRUPTED)
        self._asked = True
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
