"""The verb `llmdiff reword`."""

from pathlib import Path
from typing import Annotated

import typer

from llmdiff.cli.models import takes_models
from llmdiff.cli.options import Verbose
from llmdiff.cli.output import set_up
from llmdiff.drawing.models import Models, usable_device
from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError


@takes_models("device", "trust_remote_code", "reword_url", "reword_model")
def reword(
    captions: Annotated[
        Path,
        typer.Argument(metavar="CAPTIONS", help=".txt, one a line, .jsonl or .csv.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.jsonl", help="File for captions and plain wordings [CAPTIONS-plain.jsonl]."
        ),
    ] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="LLM that rewords: name, folder, GGUF or Hub id.")
    ] = None,
    verbose: Verbose = False,
    *,
    models: Models,
) -> None:
    """Write a plain wording of every caption, with an LLM (--llm) or a closed LLM (--reword-url).

    `llmdiff train` with data.kind captions reads the file. Run again to continue.
    """
    set_up(verbose)
    check_extra("train", "pydantic", "yaml", "datasets")
    if (llm is None) == (models.reword_url is None):
        raise ConfigError(
            "llm, reword_url: expected one of the two: name an LLM, or the address of a closed one and its name there"
        )
    from llmdiff.training.captions import read_captions
    from llmdiff.training.plain_wording import Rewords, llm_rewords, reword_captions

    rewording = models.control.rewording

    def make() -> Rewords:
        if rewording is not None:
            return rewording.closed.answer
        from llmdiff.language.llm import DecoderLLM

        device = usable_device(models.device)
        trust = models.trust_remote_code
        return llm_rewords(DecoderLLM.from_pretrained(str(llm), device=device, trust_remote_code=trust))

    place = out or Path(f"{captions.stem}-plain.jsonl")
    count, failed = reword_captions(read_captions(captions), make, place)
    left_out = f"; {failed} have no usable plain wording and are left out" if failed else ""
    typer.echo(f"{count} captions with plain wordings in {place}{left_out}")
