"""The verbs of `llmdiff-lab study`: create, serve, report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmdiff.checks import bounds
from llmdiff.cli.help_text import HelpfulGroup
from llmdiff.cli.options import Verb, number
from llmdiff.environment import check_extra
from llmdiff.errors import ConfigError

app = typer.Typer(
    cls=HelpfulGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ask people which system's pictures they prefer, in blinded pairs.",
)


class Question(StrEnum):
    """The questions that raters can be asked."""

    alignment = "alignment"
    quality = "quality"
    details = "details"


Study = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's folder.", show_default=False)]


@app.command(
    cls=Verb,
    epilog="llmdiff-lab study create --out study --system base=report/drawn/base --system llm=report/drawn/llm",
)
def create(
    out: Annotated[Path, typer.Option("--out", metavar="STUDY", help="The new study's folder.")],
    system: Annotated[
        list[str],
        typer.Option(
            "--system",
            metavar="NAME=SOURCE",
            help="A system: a folder of its pictures, or a JSONL list of them. Give two or more.",
        ),
    ],
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Which picture is better?",
    question: Annotated[
        list[Question] | None, typer.Option("--question", help="Question to ask; may be repeated [all].")
    ] = None,
    ties: Annotated[bool, typer.Option("--ties/--no-ties", help='Allow "no difference".')] = True,
    pairs_per_rater: Annotated[
        int | None, number("--pairs-per-rater", bounds.COUNT, help="Number of pairs for each rater [all].")
    ] = None,
    check_every: Annotated[
        int,
        number("--check-every", bounds.COUNT_OR_NONE, help="Pairs per attention check; 0 for no checks."),
    ] = 10,
    seed: Annotated[int, number("--seed", bounds.SEED, help="Seed of the attention checks.")] = 0,
) -> None:
    """Create a study from pictures of the same prompts. The pictures are copied without their metadata."""
    from llmdiff_lab.study.study import QUESTIONS, create_study

    systems: dict[str, str | Path] = {}
    for given in system:
        name, equals, source = given.partition("=")
        if not equals or name in systems:
            raise ConfigError(f"system {given!r}: expected NAME=SOURCE, every name once")
        systems[name] = source
    create_study(
        out,
        systems,
        title=title,
        questions=[one.value for one in question or []] or list(QUESTIONS),
        ties=ties,
        pairs_per_rater=pairs_per_rater,
        check_every=check_every,
        seed=seed,
    )
    typer.echo(out)


@app.command(cls=Verb, epilog="llmdiff-lab study serve study --port 8001")
def serve(
    study: Study,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("--port", bounds.PORT, help="Port; 0 takes a free one.")] = 8001,
    max_raters: Annotated[int, number("--max-raters", bounds.COUNT, help="Largest number of raters.")] = 1000,
    public_url: Annotated[
        str | None, typer.Option("--public-url", help="The page's address for raters, if behind a proxy.")
    ] = None,
) -> None:
    """Serve the study's page and store the raters' answers."""
    check_extra("serve", "uvicorn", "fastapi", "prometheus_client")
    from llmdiff_lab.study.api import serve_study

    serve_study(study, host=host, port=port, max_raters=max_raters, public_url=public_url)


@app.command(cls=Verb, epilog="llmdiff-lab study report study --out study-report")
def report(
    study: Study,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the report.")],
    max_failed_checks: Annotated[
        int, number("--max-failed-checks", bounds.COUNT_OR_NONE, help="Leave out raters who fail more.")
    ] = 0,
) -> None:
    """Write win rates, Bradley-Terry strengths and agreement: report.html, report.json and answers.csv."""
    from llmdiff_lab.study.report import write_report

    write_report(study, out, max_failed_checks=max_failed_checks)
    typer.echo(out / "report.html")
