"""The command `llmdiff` and its verbs."""

from llmdiff.cli import batch, doctor, draw, evaluate, init, plan, port, reword, serve, train, ui, world
from llmdiff.cli.application import new_application, run
from llmdiff.cli.options import Verb

# Modules that import torch are imported inside the verbs, so that `llmdiff --help` is fast.

app = new_application(
    "llmdiff", "Draw with a decoder-only LLM in control of a diffusers text-to-image pipeline."
)
app.command("generate", cls=Verb)(draw.generate)
app.command("compare", cls=Verb)(draw.compare)
app.command(cls=Verb)(batch.batch)
app.command(cls=Verb)(init.init)
app.command(cls=Verb)(reword.reword)
app.command(cls=Verb)(train.prepare)
app.command(cls=Verb)(train.train)
app.command(cls=Verb)(plan.plan)
app.command(cls=Verb)(port.port)
app.command(cls=Verb)(evaluate.evaluate)
app.command(cls=Verb)(serve.serve)
app.command(cls=Verb)(ui.ui)
app.command(cls=Verb)(world.world)
app.command(cls=Verb)(doctor.doctor)


def main() -> None:
    """Run the command line."""
    run(app, "llmdiff")
