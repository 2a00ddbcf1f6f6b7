"""Loss curves of a training run as a picture."""

from pathlib import Path

from llmdiff.training.log import read_log


def save_curve(log: Path, picture: Path, *, figure: str = "loss") -> None:
    """Draw one logged figure over the steps of a run."""
    from matplotlib.figure import Figure

    lines = [line for line in read_log(log) if figure in line]
    if not lines:
        return
    sheet = Figure(figsize=(7, 3.5), layout="constrained")
    axes = sheet.subplots()
    axes.plot([line["step"] for line in lines], [line[figure] for line in lines])
    axes.set(xlabel="step", ylabel=figure, title=log.parent.name)
    if min(line[figure] for line in lines) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(picture, dpi=110)
