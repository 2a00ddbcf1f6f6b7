"""One block of options for every verb that draws or evaluates, and the `Models` that it names."""

from dataclasses import fields
from typing import Any

import pytest
import typer.main

from llmdiff.cli.main import app
from llmdiff.cli.models import takes_models
from llmdiff.drawing.models import Models
from llmdiff_lab.cli.main import app as laboratory

_ALL = {"--" + one.name.replace("_", "-") for one in fields(Models)}
# The page's visitors write prompts and choose a scale; `inspect scores` draws nothing and shows one answer.
_LACKS = {
    "ui": {"--scale", "--weighted", "--block-gains", "--layer-scale", "--encodings"},
    "inspect scores": {
        "--pipeline",
        "--scale",
        "--keep-base-text",
        "--weighted",
        "--reword-answers",
        "--block-gains",
        "--layer-scale",
        "--encodings",
    },
}


@pytest.mark.parametrize(
    "verb",
    ["generate", "compare", "batch", "evaluate", "serve", "ui", "inspect scores", "inspect attention"],
)
def test_every_verb_that_reads_prompts_takes_the_same_models(verb: str) -> None:
    command: Any = typer.main.get_command(laboratory if verb.startswith("inspect") else app)
    for name in verb.split():
        command = command.commands[name]
    options = {option for one in command.params for option in one.opts}
    assert options & _ALL == _ALL - _LACKS.get(verb, set())


def test_every_option_reaches_the_models() -> None:
    application = typer.Typer()
    seen: list[Models] = []

    @application.command()
    @takes_models()
    def draw(*, models: Models) -> None:
        seen.append(models)

    given = {
        "--adapter": "a", "--llm": "b", "--pipeline": "c", "--scale": "0.5", "--device": "cpu",
        "--dtype": "bfloat16", "--reword-url": "http://127.0.0.1:1/v1", "--reword-model": "m",
        "--reword-answers": "3", "--block-gains": "0-9=0.5", "--layer-scale": "mid_block.*=0.5",
    }  # fmt: skip
    words = [word for pair in given.items() for word in pair]
    typer.main.get_command(application).main(
        [*words, "--keep-base-text", "--weighted", "--trust-remote-code"], standalone_mode=False
    )
    typer.main.get_command(application).main([], standalone_mode=False)
    # Saved encodings stand in for an LLM, so both at once are refused.
    typer.main.get_command(application).main(["--encodings", "d"], standalone_mode=False)
    named, default, saved = seen
    assert saved == Models(encodings="d")
    assert named == Models(
        adapter="a",
        llm="b",
        pipeline="c",
        scale=0.5,
        keep_base_text=True,
        weighted=True,
        device="cpu",
        dtype="bfloat16",
        trust_remote_code=True,
        reword_url="http://127.0.0.1:1/v1",
        reword_model="m",
        reword_answers=3,
        block_gains="0-9=0.5",
        layer_scale="mid_block.*=0.5",
    )
    assert default == Models()
    control = named.control
    assert (control.scale, control.keep_base_text, control.weighted) == (0.5, True, True)
    assert control.rewording is not None
    assert control.rewording.closed.settings.answers == 3
