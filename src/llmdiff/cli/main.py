"""The command `llmdiff` and its verbs."""

from collections.abc import Callable

from llmdiff.cli import doctor, draw, encode, evaluate, init, plan, port, reword, serve, train, ui, world
from llmdiff.cli.application import new_application, run
from llmdiff.cli.options import Verb

# Modules that import torch are imported inside the verbs, so that `llmdiff --help` is fast.

app = new_application(
    "llmdiff", "Draw with a decoder-only LLM in control of a diffusers text-to-image pipeline."
)


def _add(verb: Callable[..., None], example: str) -> None:
    """Add a verb, whose name is the example's second word; its help ends with the example."""
    app.command(example.split()[1], cls=Verb, epilog=example)(verb)


_add(draw.generate, 'llmdiff generate "a spacecraft above a fortress on a blue background"')
_add(draw.compare, 'llmdiff compare "an automobile to the right of a tortoise" --number 2 --save-size 256')
_add(draw.batch, "llmdiff batch prompts.txt --out pictures")
_add(encode.encode, "llmdiff encode prompts.txt --out encodings")
_add(init.init, "llmdiff init my-pictures")
_add(reword.reword, "llmdiff reword captions.txt --llm smollm2-135m --out pairs.jsonl")
_add(train.prepare, "llmdiff prepare my-pictures.yaml --workers 2")
_add(train.train, "llmdiff train my-pictures.yaml training.steps=2000")
_add(plan.plan, "llmdiff plan my-pictures.yaml --measure")
_add(port.port, "llmdiff port --adapter openmoji --llm my-llm --captions captions.txt --out ported")
_add(evaluate.evaluate, "llmdiff evaluate --suite scenes --prompts 20 --out report")
_add(serve.serve, "llmdiff serve --port 8000 --token-file key")
_add(ui.ui, "llmdiff ui --adapter openmoji --adapter runs/my-pictures/adapter")
_add(world.world, "llmdiff world --group animals")
_add(doctor.doctor, "llmdiff doctor")


def main() -> None:
    """Run the command line."""
    run(app, "llmdiff")
