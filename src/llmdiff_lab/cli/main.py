"""The command `llmdiff-lab` and its verbs."""

from llmdiff.cli.application import new_application, run
from llmdiff.cli.options import Verb
from llmdiff_lab.cli import benchmark, build, compare_llms, inspect, study

# Modules that import torch are imported inside the verbs, so that `llmdiff-lab --help` is fast.

app = new_application(
    "llmdiff-lab", "Compare LLMDiff with its rivals, build its embedded default, look inside, ask people."
)
app.command(cls=Verb, epilog="llmdiff-lab build --preset test --out build")(build.build)
app.command(cls=Verb, epilog="llmdiff-lab benchmark --rivals refined,paper,base --seeds 1 --out benchmark")(
    benchmark.benchmark
)
app.command("compare-llms", cls=Verb, epilog="llmdiff-lab compare-llms --llms smollm2-135m --out llms")(
    compare_llms.compare_llms
)
app.add_typer(inspect.app, name="inspect")
app.add_typer(study.app, name="study")


def main() -> None:
    """Run the command line."""
    run(app, "llmdiff-lab")
