"""Logging of the command line: our own messages always, the libraries' only with --verbose."""

import logging
import os
import warnings
from typing import Any

import typer


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def set_up(verbose: bool) -> None:
    """Log our messages to stderr, one per line, and silence the libraries unless `verbose`."""
    for package in ("llmdiff", "llmdiff_lab"):
        log = logging.getLogger(package)
        if not any(isinstance(handler, _Lines) for handler in log.handlers):
            log.addHandler(_Lines())
        log.setLevel(logging.INFO)
    if verbose:
        return
    # The libraries read these variables when they are imported later.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"llmdiff(_lab)?\b")
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        """Print a warning, unless the same one was printed before."""
        if str(message) not in shown:
            shown.add(str(message))
            typer.echo(f"warning: {message}", err=True)

    warnings.showwarning = show
