"""Options that several verbs have: the same name, the same words."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """What models compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option("--guidance-scale", help="Classifier-free guidance.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What not to draw.")]
Number = Annotated[int, typer.Option("--number", min=1, help="Pictures to draw, from seeds in a row.")]
Height = Annotated[int | None, typer.Option("--height", help="Pixels [the pipeline's own].")]
Width = Annotated[int | None, typer.Option("--width", help="Pixels [the pipeline's own].")]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale", min=0.0, max=1.0, help="From 0, the base text encoder, to 1, the LLM [the adapter's own]."
    ),
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
MetricNames = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="What to measure besides; may be repeated."),
]
MetricModels = Annotated[
    list[str] | None,
    typer.Option(
        "--metric-model", metavar="PATH", help="Its model, folder or Hub id: one for each --metric."
    ),
]
Computing = Annotated[Dtype, typer.Option("--dtype", help="What LLM and pipeline compute in.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the LLM.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps [an accelerator, else cpu].")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what the libraries have to say, too.")]

# Of what trains and measures on the embedded default: benchmark, compare-llms.
BenchmarkOut = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where everything goes.")]
Preset = Annotated[str, typer.Option("--preset", help="The embedded default's: cpu, gpu, test.")]
Build = Annotated[Path | None, typer.Option("--build", help="Folder of its build [in the cache folder].")]
Begin = Annotated[
    str | None,
    typer.Option("--from", help='Base and checker: "shipped" or a folder [shipped, if of the preset].'),
]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Captions a step [the preset's].")]
Captions = Annotated[int | None, typer.Option("--captions", min=1, help="Of training [the preset's].")]
Prompts = Annotated[int, typer.Option("--prompts", min=1, help="Prompts of every split.")]
DrawingSteps = Annotated[int, typer.Option("--drawing-steps", min=1, help="Denoising steps.")]
