"""Logging of the command line: our own messages always, the libraries' only with --verbose."""

import logging
import os
import warnings

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
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
