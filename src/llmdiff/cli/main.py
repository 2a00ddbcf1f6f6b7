"""The command `llmdiff`: one thin verb for each thing to do; the work is done elsewhere."""

from llmdiff.cli import batch, doctor, draw, evaluate, plan, serve, train, ui
from llmdiff.cli.application import new_application

# Modules that import torch are imported inside the verbs: `llmdiff --help` answers at once.

app = new_application(
    "llmdiff", "Draw with a decoder-only LLM in control of a diffusers text-to-image pipeline."
)
app.command("generate")(draw.generate)
app.command("compare")(draw.compare)
app.command()(batch.batch)
app.command()(train.prepare)
app.command()(train.train)
app.command()(plan.plan)
app.command()(evaluate.evaluate)
app.command()(serve.serve)
app.command()(ui.ui)
app.command()(doctor.doctor)


def main() -> None:
    """Run the command line."""
    app(prog_name="llmdiff")
