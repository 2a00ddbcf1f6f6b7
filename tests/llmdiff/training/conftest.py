"""A tiny training run's models, pictures and configuration, all of real classes."""

import pytest
from PIL import Image
from tiny.families import BUILDERS

from llmdiff.training.config import TrainConfig


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a tiny LLM, of tiny pipelines and of pictures."""
    from tiny.pipelines import build_llm

    folder = tmp_path_factory.mktemp("models")
    llm = build_llm()
    llm.model.save_pretrained(folder / "llm")
    llm.tokenizer.save_pretrained(folder / "llm")
    for name in ("sd", "sdxl"):
        BUILDERS[name]().save_pretrained(folder / name)
    (folder / "data").mkdir()
    for index in range(12):
        size = (32, 32) if index % 3 else (48, 32)
        Image.new("RGB", size, (20 * index, 255 - 20 * index, 90)).save(folder / "data" / f"{index:02d}.png")
        (folder / "data" / f"{index:02d}.txt").write_text("a red cat\na cat" if index % 2 else "two blue dog")
    return folder


@pytest.fixture
def config(models, tmp_path):
    """A function that gives a tiny configuration with some values changed, by their dotted names."""

    def make(out="run", base="sd", **changes):
        settings = {
            "out": str(tmp_path / out),
            "store": str(tmp_path / "store"),
            "device": "cpu",
            "models": {"llm": str(models / "llm"), "base": str(models / base)},
            "data": {
                "kind": "folder",
                "path": str(models / "data"),
                "resolution_px": 32,
                "multiple_px": 16,
                "min_side_px": 16,
                "store_latents": True,
            },
            "training": {"steps": 4, "batch_size": 2, "lr_warmup_steps": 1, "checkpoint_every_s": 0},
            "watch": {
                "validation_samples": 4,
                "validate_every": 2,
                "prompts": ["a cat"],
                "seeds": [0],
                "sample_every": 4,
                "sample_steps": 1,
                "trackers": [],
            },
        }
        for name, value in changes.items():
            section, key = name.split("__")
            settings[section][key] = value
        return TrainConfig.model_validate(settings)

    return make


@pytest.fixture
def interrupt(monkeypatch):
    """A function that interrupts a method's nth call, as Ctrl-C would, until `monkeypatch.undo()`."""

    def at_call(number, owner, name):
        method, calls = getattr(owner, name), []

        def counted(*args, **kwargs):
            calls.append(name)
            if len(calls) == number:
                raise KeyboardInterrupt
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    return at_call
