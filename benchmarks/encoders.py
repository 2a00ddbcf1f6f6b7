"""Which text encoding follows prompts best? Equal steps for all, the same frozen denoiser, prompts and seeds.

    python benchmarks/encoders.py --prompts 100 --out docs/results/encoders

Needs a finished build of the embedded default up to its stage `checker` (python -m llmdiff.openmoji.build
--until checker). Systems:

    base         the base pipeline as it ships
    base-longer  its denoiser and text encoder trained on, for as many steps as the adapters
    base-states  the adapter, fed with the base's own text states
    last-hidden  the adapter, fed with the LLM's last hidden state
    paper        the adapter on c = x_0 + sum g s
    guided       the adapter on c = x_0 + sum (g s + k v)

Training is resumable: a killed run continues where its last checkpoint is.
"""

import argparse
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmdiff.adapter.adapter import LLMDiffAdapter
from llmdiff.adapter.attach import attach, detach
from llmdiff.evaluation.report import evaluate_systems
from llmdiff.evaluation.suites import scenes_suite
from llmdiff.evaluation.systems import pipeline_system
from llmdiff.evaluation.tables import report_tables
from llmdiff.language.gguf import llmdiff_home
from llmdiff.language.llm import DecoderLLM
from llmdiff.openmoji import denoiser, llm_adapter
from llmdiff.openmoji.build import Build
from llmdiff.openmoji.contents import World
from llmdiff.openmoji.presets import preset
from llmdiff.rivals.base_text import BaseTextStates
from llmdiff.rivals.last_hidden import LastHiddenStates

SYSTEMS = ("base", "base-longer", "base-states", "last-hidden", "paper", "guided")


class Benchmark:
    def __init__(self, build: Build, folder: Path) -> None:
        self.build, self.folder = build, folder
        self.pipe, self.data = build.pipeline(), build.scenes()
        self.llm = DecoderLLM.from_pretrained(build.preset.llm, device=build.device)

    def system(self, name: str, **drawing: Any) -> Any:
        """The named system, trained if it is not yet."""
        if name == "base":
            return pipeline_system(self.pipe, **drawing)
        if name == "base-longer":
            return pipeline_system(self._trained_on(), **drawing)
        source, adapter = self._adapter(name)
        draw = pipeline_system(self.pipe, **drawing)

        def drawn(prompts: list[str], seeds: list[int]) -> Any:
            with _attached(self.pipe, source, adapter):
                return draw(prompts, seeds)

        return drawn

    def _adapter(self, name: str) -> tuple[Any, LLMDiffAdapter]:
        settings, folder = self.build.preset, self.folder / name
        if name in ("paper", "guided"):
            settings = replace(settings, adapter_encoding=name)
            adapter = llm_adapter.create_adapter(settings, self.data, self.pipe, self.llm)
            llm_adapter.train_llm_adapter(settings, self.data, self.pipe, self.llm, adapter, folder)
            return self.llm, adapter
        source: Any = LastHiddenStates(self.llm, template=settings.adapter_template)
        if name == "base-states":
            source = BaseTextStates(self.pipe.tokenizer, self.pipe.text_encoder)
        # The adapters that learn gains spend adapter_gain_steps on that: these get as many steps from text.
        settings = replace(
            settings, adapter_warm_steps=settings.adapter_warm_steps + settings.adapter_gain_steps
        )
        captioned = llm_adapter.CaptionedScenes.draw(self.data, settings.adapter_captions, settings.seed)
        torch.manual_seed(settings.seed + 3)
        adapter = LLMDiffAdapter.create(
            self.pipe,
            llm_id=source.id,
            hidden_size=source.hidden_size,
            num_blocks=0,
            encoding=None,
            base_model_id="openmoji",
            sample_prompts=captioned.captions[:16],
        )
        llm_adapter.train_adapter_on(
            settings, self.data, self.pipe, adapter, captioned, source.encode, folder
        )
        return source, adapter

    def _trained_on(self) -> Any:
        settings = self.build.preset
        pipe = self.build.pipeline()
        denoiser.train_on(
            replace(settings, unet_steps=settings.adapter_steps),
            self.data,
            pipe,
            self.folder / "base-longer",
        )
        return pipe


@contextmanager
def _attached(pipe: Any, source: Any, adapter: LLMDiffAdapter) -> Any:
    attach(pipe, source, adapter)
    try:
        yield
    finally:
        detach(pipe)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--build", type=Path, help="the folder of the build (default: the cache folder)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which, separated by commas")
    parser.add_argument("--prompts", type=int, default=100, help="prompts per split")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of every picture")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    settings = preset(chosen.preset)
    folder = chosen.build or llmdiff_home() / "builds" / f"openmoji-{settings.name}"
    build = Build(settings, folder, torch.device(chosen.device))
    build.run("checker")
    bench = Benchmark(build, folder / "encoders")
    drawing = {"steps": chosen.steps, "guidance_scale": chosen.guidance_scale}
    systems = {name: bench.system(name, **drawing) for name in chosen.systems.split(",")}
    suite = scenes_suite(chosen.prompts, 0, World(objects=settings.objects))
    report = evaluate_systems(systems, suite, build.checker(), chosen.out, settings=drawing)
    print(report_tables(report))


if __name__ == "__main__":
    main()
