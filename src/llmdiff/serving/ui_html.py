"""The parts of the page that show pictures, as HTML; every text from outside is escaped here."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llmdiff.serving.studio import Step, System

TITLES: Mapping[System, str] = {"base": "Base text encoder", "llm": "LLM"}

CSS = """
.llmdiff-sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.llmdiff-sides h3 { margin: 0 0 .5rem; font-size: 1rem; font-weight: 600; }
.llmdiff-pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.llmdiff-sides .llmdiff-pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
.llmdiff-pictures figure { margin: 0; min-width: 0; }
.llmdiff-pictures img { width: 100%; image-rendering: pixelated; border-radius: .35rem; display: block;
  background: #8882; }
.llmdiff-frame { aspect-ratio: 1; border: 1px dashed #8888; border-radius: .35rem; display: flex;
  align-items: center; justify-content: center; opacity: .7; padding: .5rem; text-align: center; }
.llmdiff-pictures figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .6rem;
  padding-top: .25rem; font-size: .875rem; }
.llmdiff-pictures a { text-decoration: underline; }
.llmdiff-pictures .llmdiff-prompt { flex-basis: 100%; overflow-wrap: anywhere; max-height: 3em; overflow: auto; }
.llmdiff-pictures details { font-size: .8125rem; }
.llmdiff-pictures summary { cursor: pointer; }
.llmdiff-pictures table { width: 100%; table-layout: fixed; border-collapse: collapse; }
.llmdiff-pictures th, .llmdiff-pictures td { text-align: left; vertical-align: top; padding: .1rem .4rem .1rem 0;
  overflow-wrap: anywhere; border: 0; }
.llmdiff-pictures th { width: 38%; font-weight: 600; }
.llmdiff-heat { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); gap: .4rem;
  padding-top: .4rem; }
.llmdiff-heat figcaption { justify-content: center; overflow-wrap: anywhere; }
.llmdiff-status progress { width: 100%; height: .6rem; appearance: none; border: 0; border-radius: .3rem;
  background: #8883; overflow: hidden; }
.llmdiff-status progress::-webkit-progress-bar { background: #8883; }
.llmdiff-status progress::-webkit-progress-value { background: #2f6fd0; }
.llmdiff-status progress::-moz-progress-bar { background: #2f6fd0; }
.llmdiff-status p { margin: 0; }
.llmdiff-error { border-left: 4px solid #c22; padding: .4rem .8rem; background: #c221; }
.llmdiff-hint { opacity: .75; font-size: .875rem; }
@media (max-width: 40rem) { .llmdiff-sides { gap: .75rem; } }
"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture that the page can show: its address, what it says of how it was made, its words' maps' addresses."""

    system: System
    seed: int
    address: str
    facts: Mapping[str, str]
    heat: Sequence[tuple[str, str]] = ()


def text(words: object) -> str:
    """Return text that is safe in HTML, and in the templates that gradio makes of HTML."""
    safe = escape(str(words))
    for letter in "${}`":
        safe = safe.replace(letter, f"&#{ord(letter)};")
    return safe


def status(words: str, *, done: float | None = None) -> str:
    """Return a line that says what happens; `done` (0 to 1) shows a bar, None none."""
    bar = "" if done is None else f"<progress max=1 value={done:.3f} aria-label=Progress></progress>"
    return f"<div class=llmdiff-status role=status><p>{text(words)}</p>{bar}</div>"


def error(words: str) -> str:
    """Return a line that says what went wrong and what to do."""
    return f"<div class=llmdiff-error role=alert>{text(words)}</div>"


def hint(words: str) -> str:
    """Return a line in small print."""
    return f"<div class=llmdiff-hint>{text(words)}</div>"


def sides(
    seeds: Sequence[int], pictures: Sequence[Shown], step: Step | None = None, preview: bytes | None = None
) -> str:
    """Return base and LLM side by side, a frame for every seed; `preview` fills the one at work."""
    columns = []
    for system, title in TITLES.items():
        done = {one.seed: one for one in pictures if one.system == system}
        frames = []
        for seed in seeds:
            if seed in done:
                frames.append(_figure(done[seed]))
            elif step is not None and (step.system, step.seed) == (system, seed):
                frames.append(_at_work(step, preview))
            else:
                frames.append(f"<figure><div class=llmdiff-frame>seed {seed}</div></figure>")
        columns.append(
            f"<section data-system={system}><h3>{title}</h3>"
            f"<div class=llmdiff-pictures>{''.join(frames)}</div></section>"
        )
    return f"<div class=llmdiff-sides>{''.join(columns)}</div>"


def nothing_yet() -> str:
    """Return what stands where the pictures will be."""
    columns = "".join(
        f"<section data-system={system}><h3>{title}</h3><div class=llmdiff-frame>nothing drawn yet</div></section>"
        for system, title in TITLES.items()
    )
    return f"<div class=llmdiff-sides>{columns}</div>"


def gallery(pictures: Sequence[Shown]) -> str:
    """Return the pictures of a visit, each with its prompt."""
    if not pictures:
        return hint("Pictures that you draw gather here until you leave the page.")
    figures = "".join(_figure(one, with_prompt=True) for one in pictures)
    return f"<div class=llmdiff-pictures>{figures}</div>"


def _figure(one: Shown, *, with_prompt: bool = False) -> str:
    title = f"{TITLES[one.system]}, seed {one.seed}"
    address, name = text(one.address), f"{one.system}-{one.seed}.png"
    rows = "".join(
        f"<tr><th scope=row>{text(key.replace('_', ' '))}</th><td>{text(value)}</td></tr>"
        for key, value in one.facts.items()
    )
    prompt = f"<span class=llmdiff-prompt>{text(one.facts['prompt'])}</span>" if with_prompt else ""
    caption = title if with_prompt else f"seed {one.seed}"
    return (
        f'<figure><a href="{address}" target=_blank rel=noopener><img src="{address}" alt="{text(title)}"></a>'
        f'<figcaption>{prompt}<span>{caption}</span><a href="{address}" download="{name}">Download</a>'
        f"</figcaption><details><summary>How it was made</summary><table>{rows}</table></details>"
        f"{_word_maps(one.heat)}</figure>"
    )


def _word_maps(heat: Sequence[tuple[str, str]]) -> str:
    if not heat:
        return ""
    maps = "".join(
        f'<figure><img src="{text(address)}" alt="Where {text(word)} is looked at" loading=lazy>'
        f"<figcaption>{text(word)}</figcaption></figure>"
        for word, address in heat
    )
    return (
        "<details class=llmdiff-words><summary>Where each word is looked at</summary>"
        f"<div class=llmdiff-heat>{maps}</div></details>"
    )


def _at_work(step: Step, preview: bytes | None) -> str:
    words = f"step {step.step} of {step.steps}"
    if preview is None:
        return f"<figure><div class=llmdiff-frame>{words}</div></figure>"
    data = base64.b64encode(preview).decode()
    return (
        f'<figure class=llmdiff-preview><img src="data:image/png;base64,{data}" alt="Preview">'
        f"<figcaption>seed {step.seed}<span>{words}</span></figcaption></figure>"
    )
