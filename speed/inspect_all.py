"""What `docs/results` says of the insides of an LLM: all of it, by one command.

    python speed/inspect_all.py --out docs/results
    python speed/inspect_all.py --out docs/results --only pointing,probes --again

scores: every block's work on one prompt. attention: where its words are looked at. denoising: how states approach
their final ones, in the LLM and in MiniLM. pointing: the pointing game on drawn scenes. probes: what linear probes
recover of captions. A part whose JSON is there already is left out, unless --again asks for it; probes go on where
they were stopped. On 2 slow cores the whole takes about half an hour.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pointing
from PIL import Image

from llmdiff.controller import LLMController
from llmdiff.drawing.attention_maps import draw_with_maps
from llmdiff.environment import command_line, versions
from llmdiff.errors import ConfigError
from llmdiff.evaluation.suites.scenes import load_checker
from llmdiff.files import writable_folder, write_whole
from llmdiff_lab.inspection.attention_plots import save_maps
from llmdiff_lab.inspection.denoising import load_encoder, read_denoising
from llmdiff_lab.inspection.denoising_plots import denoising_table, save_denoising
from llmdiff_lab.inspection.probe_plots import probe_tables, save_probes
from llmdiff_lab.inspection.probe_table import ProbeSettings, measure_probes
from llmdiff_lab.inspection.score_plots import save_scores
from llmdiff_lab.inspection.scores import inspect_scores
from llmdiff_lab.inspection.texts import read_texts
from llmdiff_lab.rivals.encoder import chosen_encoder

_MOST_BYTES = 1_000_000


class Inspection:
    """The parts, and the models that some of them share."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.out = writable_folder(chosen.out)
        self.encoder = chosen_encoder(chosen.encoder)
        self.about = {"command": command_line(), "date": datetime.now(UTC).isoformat(timespec="seconds")}

    @cached_property
    def controller(self) -> LLMController:
        return LLMController.from_pretrained(self.chosen.adapter)

    @cached_property
    def pipe(self) -> Any:
        pipe = self.controller.load_pipeline()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def scores(self) -> str:
        controller = self.controller
        report = inspect_scores(controller.llm, self.chosen.prompt, adapter=controller.adapter)
        self._keep(lambda folder: save_scores(report, folder), "scores.json", "scores.png")
        sink = report.sink
        norms = f"{sink['context_norm']:,.0f} => {sink['score_norm']:,.0f}"
        return f"sink {sink['text']!r} in block {sink['block']}: {norms}"

    def attention(self) -> str:
        maps = draw_with_maps(
            self.controller,
            self.pipe,
            self.chosen.prompt,
            1.0,
            seed=self.chosen.seed,
            steps=self.chosen.steps,
        )
        names = ("attention.json", "attention.png", "attention-steps.png")
        self._keep(lambda folder: save_maps(maps, folder), *names)
        return ", ".join(word.text for word in maps.words)

    def denoising(self) -> str:
        texts = read_texts(None, self.chosen.texts)
        reports = []
        for name in filter(None, (self.chosen.llm, self.encoder)):
            model, tokenizer, kind = load_encoder(name)
            reports.append(read_denoising(model, tokenizer, texts, name=name, kind=kind))
        names = ("denoising.json", "denoising.png", "denoising.md")
        self._keep(lambda folder: save_denoising(reports, folder), *names)
        return denoising_table(reports)

    def pointing(self) -> str:
        checker = load_checker(self.chosen.checker)
        record = pointing.play(
            self.controller, self.pipe, checker, scenes=self.chosen.scenes, steps=self.chosen.steps
        )
        self._write("pointing.json", record | {"adapter": self.chosen.adapter})
        return json.dumps(record)

    def probes(self) -> str:
        settings = ProbeSettings(
            llm=self.chosen.llm,
            encoder=self.encoder,
            captions=self.chosen.captions,
            tests=self.chosen.tests,
            steps=self.chosen.probe_steps,
        )
        record = measure_probes(settings, self.chosen.work)
        self._keep(lambda folder: save_probes(record, folder), "probes.json", "probes.md", "probes.png")
        return probe_tables(record)

    def _keep(self, save: Callable[[Path], Any], *names: str) -> None:
        """Write these files of those that `save` creates; add command and date to JSON files."""
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            for name in names:
                path = Path(folder) / name
                if path.suffix == ".png" and path.stat().st_size > _MOST_BYTES:
                    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
                if path.stat().st_size > _MOST_BYTES:
                    raise ConfigError(f"{name} has {path.stat().st_size:,} bytes, expected 1 MB at most")
                if path.suffix == ".json":
                    self._write(name, json.loads(path.read_text(encoding="utf-8")))
                else:
                    shutil.copyfile(path, self.out / name)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        indent = 1 if len(json.dumps(record)) < 100_000 else None
        write_whole(
            self.out / name,
            json.dumps(self.about | {"versions": versions()} | record, indent=indent) + "\n",
        )


PARTS = ("scores", "attention", "denoising", "pointing", "probes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--work", type=Path, default=Path("runs/probes"), help="where probes keep their rows")
    parser.add_argument("--adapter", default="openmoji")
    parser.add_argument("--checker", default="openmoji")
    parser.add_argument("--llm", default="smollm2-135m", help="of denoising and probes")
    parser.add_argument("--encoder", help='"none", folder or Hub id [minilm, where installed]')
    parser.add_argument("--prompt", default="a cat to the left of a red heart")
    parser.add_argument("--seed", type=int, default=1, help="of the picture with attention maps")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of pictures")
    parser.add_argument("--scenes", type=int, default=100, help="pairs of the pointing game")
    parser.add_argument("--texts", type=int, default=1000, help="of the denoising reading")
    parser.add_argument("--captions", type=int, default=1500, help="to train each probe on")
    parser.add_argument("--tests", type=int, default=150, help="captions of every split for probes")
    parser.add_argument("--probe-steps", type=int, default=600)
    chosen = parser.parse_args()
    wanted = [part.strip() for part in chosen.only.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        parser.error(f"--only: got {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    inspection = Inspection(chosen)
    for part in wanted:
        if (chosen.out / f"{part}.json").exists() and not chosen.again:
            print(f"{part}: there already", flush=True)
            continue
        print(f"{part}: {getattr(inspection, part)()}", flush=True)


if __name__ == "__main__":
    main()
