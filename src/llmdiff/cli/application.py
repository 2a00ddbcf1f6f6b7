"""Code shared by the commands `llmdiff` and `llmdiff-lab`: one-line errors, Ctrl-C, `--version`, `--traceback`."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

from llmdiff import __version__
from llmdiff.cli.help_text import CONTEXT, HelpfulGroup
from llmdiff.errors import LLMDiffError, first_line

_TRACEBACK = "--traceback"
_EXIT_INTERRUPTED, _EXIT_INTERNAL = 130, 70  # as a shell reports SIGINT; EX_SOFTWARE of sysexits.h


class _Verbs(HelpfulGroup):
    """Print our own errors and the system's file errors as one line; for other exceptions see `run`."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except LLMDiffError as error:
            _print_error(str(error))
        except OSError as error:
            # For example: a full disk, a read-only folder, a name that is too long.
            if error.strerror is None:
                raise
            _print_error(
                f"{error.filename or 'a file or the standard output'} cannot be used ({error.strerror}): check the "
                "path, its permissions and the free space on its disk"
            )
        sys.exit(1)


def _print_error(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def new_application(name: str, help: str) -> typer.Typer:
    """Return a command without verbs; `run` starts it."""
    # Without rich, whose import takes longer than the rest of `llmdiff --help`.
    app = typer.Typer(
        cls=_Verbs,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=dict(CONTEXT),
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
        traceback: Annotated[
            bool, typer.Option(_TRACEBACK, help="Show the traceback of an internal error.")
        ] = False,
    ) -> None:
        pass

    return app


def run(app: Callable[..., Any], name: str) -> None:
    """Run a command and exit; print an unexpected exception as one line and exit with status 70."""
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # not if SIGINT is ignored, as with nohup
        signal.signal(signal.SIGINT, _Interrupts())
    code: Any = 0
    try:
        app(prog_name=name)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
    except Exception as error:
        if _TRACEBACK in sys.argv:
            raise
        typer.echo(
            f"internal error: {type(error).__name__}: {first_line(error)} (`{name} {_TRACEBACK} ...` shows where; "
            "please report it)",
            err=True,
        )
        code = _EXIT_INTERNAL
    sys.exit(_flushed(code))


def _flushed(code: Any) -> Any:
    """Flush standard output and return the exit status: 1 if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at exit and print its own error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _print_error(f"standard output cannot be written ({error.strerror}): send it somewhere else")
        return code or 1
    return code


class _Interrupts:
    """End the process at once on Ctrl-C during an import, which may swallow it, or on a second Ctrl-C."""

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
