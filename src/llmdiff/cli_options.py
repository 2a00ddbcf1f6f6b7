"""Options that several verbs have: the same name, the same words."""

from typing import Annotated

import typer

Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option("--guidance-scale", help="Classifier-free guidance.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What not to draw.")]
Number = Annotated[int, typer.Option("--number", min=1, help="Pictures to draw, from seeds in a row.")]
Height = Annotated[int | None, typer.Option("--height", help="Pixels [the pipeline's own].")]
Width = Annotated[int | None, typer.Option("--width", help="Pixels [the pipeline's own].")]
Scale = Annotated[
    float, typer.Option("--scale", min=0.0, max=1.0, help="From 0, the base text encoder, to 1, the LLM.")
]
Adapter = Annotated[str, typer.Option("--adapter", help="A trained adapter: name, folder or Hub id.")]
Llm = Annotated[str | None, typer.Option("--llm", help="Name, folder, GGUF or Hub id [the adapter's own].")]
Pipeline = Annotated[str | None, typer.Option("--pipeline", help="Folder or Hub id [the adapter's own].")]
Via = Annotated[
    str | None,
    typer.Option(
        "--via", help="OpenAI-compatible address of a closed LLM that rewords prompts in plain words."
    ),
]
ViaModel = Annotated[
    str | None, typer.Option("--via-model", help="Its name there. The key, if any: $LLMDIFF_VIA_API_KEY.")
]
ViaAnswers = Annotated[
    int,
    typer.Option(
        "--via-answers", min=1, help="Ask it so often and average what the LLM makes of each answer."
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps [an accelerator, else cpu].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what the libraries have to say, too.")]
