"""Write a score report as pictures and as one self-contained page."""

import re
from pathlib import Path
from typing import Any

from llmdiff.serving.templates import render
from llmdiff_lab.inspection.figure_files import figure_bytes, json_text, save_all
from llmdiff_lab.inspection.scores import Rows, ScoreReport

_PANELS = (
    ("context_norm", "context update |u|", "log", "magma"),
    ("lone_norm", "lone update |v|", "log", "magma"),
    ("score_norm", "score |u - v|", "log", "magma"),
    ("cosine", "cosine of u and v", "signed", "RdBu_r"),
    ("added", "what the block adds to c", "linear", "viridis"),
    ("running", "cosine of c so far and c", "signed", "RdBu_r"),
)


def save_scores(report: ScoreReport, folder: Path) -> list[Path]:
    """Write scores.json, scores.png, scores.svg and scores.html into `folder`; return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    figure = score_figure(report)
    svg = figure_bytes(figure, "svg")
    contents: dict[str, str | bytes] = {
        "scores.json": json_text(report.to_json()),
        "scores.png": figure_bytes(figure),
        "scores.svg": svg,
        "scores.html": score_page(report, svg.decode()),
    }
    return save_all(folder, contents)


def score_figure(report: ScoreReport) -> Any:
    """Return a matplotlib figure of every quantity by block and token, and of the learned weights."""
    from matplotlib.figure import Figure

    tokens, rows = len(report.tokens), 4
    figure = Figure(figsize=(max(11.0, 0.36 * tokens * 3 + 4), 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 3)
    figure.suptitle(f"{report.prompt}\n{report.llm}, alone = {report.lone}, encoding = {report.encoding}")
    for place, (name, title, scale, colours) in zip(axes[:2].flat, _PANELS, strict=True):
        _heat_map(figure, place, getattr(report, name), report.tokens, title, scale, colours)
    _gains(axes[2, 0], report)
    _approach(axes[2, 1], report)
    _states(axes[2, 2], report)
    _sink(axes[3, 0], report)
    grid = axes[3, 0].get_gridspec()
    for place in axes[3, 1:]:
        place.remove()
    if report.gates is not None:
        _gates(figure.add_subplot(grid[3, 1:]), report.gates)
    return figure


def score_page(report: ScoreReport, svg: str) -> str:
    """Return a self-contained HTML page with the figure."""
    rows = [["token", "|x_0|", "|c|"]]
    rows += [
        [token, f"{x0:.2f}", f"{c:.2f}"]
        for token, x0, c in zip(report.tokens, report.x0_norm, report.encoding_norm, strict=True)
    ]
    return render(
        "scores.html", package="llmdiff_lab", report=report, rows=rows, svg=svg[svg.index("<svg") :]
    )


def _heat_map(
    figure: Any, place: Any, rows: Rows, tokens: tuple[str, ...], title: str, scale: str, colours: str
) -> None:
    from matplotlib.colors import LogNorm

    values = [value for row in rows for value in row]
    limits: dict[str, Any] = {"signed": {"vmin": -1, "vmax": 1}, "linear": {"vmin": 0}}.get(scale, {})
    if scale == "log":
        positive = sorted(value for value in values if value > 0) or [1.0]
        # BOS has no score: its zeros must not stretch the colours.
        limits = {
            "norm": LogNorm(vmin=positive[len(positive) // 50], vmax=max(positive[-1], positive[0] * 1.01))
        }
    image = place.imshow(rows, aspect="auto", cmap=colours, origin="lower", interpolation="nearest", **limits)
    place.set_title(title)
    place.set_ylabel("block")
    place.set_xticks(range(len(tokens)), [_label(token) for token in tokens], rotation=90, fontsize=8)
    figure.colorbar(image, ax=place, shrink=0.9)


def _gains(place: Any, report: ScoreReport) -> None:
    gains = report.gains
    place.plot(gains.gamma, label="gamma (scores)", marker=".")
    if gains.kappa is not None:
        place.plot(gains.kappa, label="kappa (lone updates)", marker=".")
    place.plot([value**0.5 for value in gains.h], label="sqrt(h) (noise)", marker=".")
    place.axhline(0, color="gray", linewidth=0.5)
    place.set(title="learned weights of the blocks", xlabel="block", ylim=(-0.5, None))
    place.legend(fontsize=8, loc="lower left")


def _approach(place: Any, report: ScoreReport) -> None:
    for index, token in enumerate(report.tokens):
        if index:
            place.plot([row[index] for row in report.along], alpha=0.6, label=_label(token))
    place.axhline(0, color="gray", linewidth=0.5)
    place.set(title="cosine of what a block adds and c", xlabel="block", ylim=(-1, 1))
    if len(report.tokens) <= 12:
        place.legend(fontsize=7, ncols=2)


def _states(place: Any, report: ScoreReport) -> None:
    for index, token in enumerate(report.tokens):
        place.plot([row[index] for row in report.state_norm], alpha=0.6, label=_label(token))
    place.set(title="norm of the token's state |x|", xlabel="block", yscale="log")
    if len(report.tokens) <= 12:
        place.legend(fontsize=7, ncols=2)


def _sink(place: Any, report: ScoreReport) -> None:
    """Plot the attention sink relative to the other tokens, with and without subtracting the lone update."""
    sink = report.sink
    place.plot(sink["without"], marker=".", label="without subtraction, |u|")
    place.plot(sink["with"], marker=".", label="with, |u - v|")
    place.axhline(1, color="gray", linewidth=0.5)
    place.set(title=f"sink {_label(sink['text'])}, others' median = 1", xlabel="block")
    place.set_yscale("symlog", linthresh=1)
    place.set_ylim(bottom=0)
    place.legend(fontsize=8)


def _gates(place: Any, gates: dict[str, tuple[float, float]]) -> None:
    at = range(len(gates))
    place.bar(
        [x - 0.2 for x in at], [first for first, _ in gates.values()], 0.4, label="pretrained, a1 exp(b1)"
    )
    place.bar([x + 0.2 for x in at], [new for _, new in gates.values()], 0.4, label="new, a2 exp(b2)")
    # down_blocks_1_attentions_0_transformer_blocks_0_attn2 => down 1 0 0
    common = {"blocks", "block", "attentions", "transformer", "attn", "attn2"}
    labels = [" ".join(word for word in re.split(r"[._]", name) if word not in common) for name in gates]
    place.set_xticks(at, labels, rotation=90 if len(gates) > 12 else 0, fontsize=8)
    place.axhline(0, color="gray", linewidth=0.5)
    place.set_title("gates of the attention layers")
    place.legend(fontsize=8)


def _label(token: str) -> str:
    # Matplotlib reads text after "$" as a formula.
    return token.strip().replace("$", r"\$") or repr(token)
