"""HTML of the page's pictures; texts from users are escaped here."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import escape

from llmdiff.serving.studio import Step, System
from llmdiff.serving.templates import macro

TITLES: Mapping[System, str] = {"base": "Base text encoder", "llm": "LLM"}
# Metadata of the base's pictures that the page does not show: the LLM had no part in them.
_OF_THE_LLM = (
    "llm",
    "adapter",
    "scale",
    "keep_base_text",
    "weighted",
    "block_gains",
    "layer_scale",
    "reword_model",
    "reword_answers",
)
_FOR_GRADIO = {ord(letter): f"&#{ord(letter)};" for letter in "${}`"}

CSS = """
.llmdiff-sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.llmdiff-sides { max-width: 52rem; }
.llmdiff-sides h3 { margin: 0 0 .5rem; font-size: 1rem; font-weight: 600; white-space: nowrap; }
.llmdiff-pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.llmdiff-sides .llmdiff-pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
.llmdiff-pictures figure { margin: 0; min-width: 0; }
.llmdiff-pictures img { width: 100%; image-rendering: pixelated; border-radius: .35rem; display: block;
  background: #8882; outline: 1px solid #8886; outline-offset: -1px; }
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
#ask { align-items: end; }
@media (max-width: 40rem) { .llmdiff-sides { gap: .75rem; } .llmdiff-sides h3 { font-size: .875rem; } }
"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture on the page: its address, its metadata, and the addresses of its attention maps."""

    system: System
    seed: int
    address: str
    metadata: Mapping[str, str]
    heat: Sequence[tuple[str, str]] = ()

    @property
    def own_metadata(self) -> Mapping[str, str]:
        """Return the metadata of the models that drew this picture: the base has none of the LLM."""
        return {
            name: value
            for name, value in self.metadata.items()
            if self.system == "llm" or name not in _OF_THE_LLM
        }


def text(words: object) -> str:
    """Escape text for HTML and for gradio's HTML templates."""
    return str(escape(words)).translate(_FOR_GRADIO)


def status(words: str, *, done: float | None = None) -> str:
    """Return a status line, with a progress bar if `done` (0 to 1) is given."""
    return _part("status", words, done)


def error(words: str) -> str:
    """Return an error message."""
    return _part("error", words)


def hint(words: str) -> str:
    """Return a hint in small print."""
    return _part("hint", words)


def sides(
    seeds: Sequence[int], pictures: Sequence[Shown], step: Step | None = None, preview: bytes | None = None
) -> str:
    """Return base and LLM side by side, a frame for every seed; `preview` fills the current one."""
    done = {(one.system, one.seed): one for one in pictures}
    frames = {system: {seed: done.get((system, seed)) for seed in seeds} for system in TITLES}
    return _part("sides", TITLES, frames, step, None if preview is None else b64encode(preview).decode())


def nothing_yet() -> str:
    """Return the placeholder of the pictures."""
    return _part("nothing_yet", TITLES)


def gallery(pictures: Sequence[Shown]) -> str:
    """Return all pictures of a session, each with its prompt."""
    if not pictures:
        return hint("Your pictures appear here until you leave the page.")
    return _part("gallery", TITLES, pictures)


def _part(name: str, *values: object) -> str:
    # The markup itself has none of these characters, so that only users' texts change.
    return macro("ui.html", name, *values).translate(_FOR_GRADIO)
