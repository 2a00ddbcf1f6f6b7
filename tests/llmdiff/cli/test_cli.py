"""The command line, on tiny real models saved in folders: what it writes, and what it says to bad input."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from closed_endpoint import Endpoint, says
from PIL import Image
from typer.testing import CliRunner

import llmdiff
from llmdiff.cli.main import app
from llmdiff.controller import LLMController
from llmdiff.drawing.pictures import read_metadata
from llmdiff.language.llm import DecoderLLM
from llmdiff_lab.cli.main import app as laboratory

Llmdiff = Callable[..., Result]
_built: dict[str, Path] = {}


@pytest.fixture
def models(
    make_sd: Callable[..., Any],
    make_llm: Callable[..., Any],
    sdxl_pipe: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Folders of a pipeline, an LLM and their adapter, and of others that do not fit them; built once."""
    if not _built:
        root = tmp_path_factory.mktemp("models")
        pipes = {"pipe": make_sd(), "narrow_pipe": make_sd(width=16), "sdxl_pipe": sdxl_pipe}
        for name, pipe in pipes.items():
            pipe.save_pretrained(root / name)
        for name, llm in {"llm": make_llm(), "deep_llm": make_llm(num_blocks=4)}.items():
            llm.model.save_pretrained(root / name)
            llm.tokenizer.save_pretrained(root / name)
        loaded = DecoderLLM.from_pretrained(root / "llm")
        controller = LLMController.create(loaded, pipes["pipe"], base_model_id=str(root / "pipe"))
        controller.save_pretrained(root / "adapter")
        _built.update({path.name: path for path in root.iterdir()})
    return _built


@pytest.fixture
def run(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Llmdiff]:
    """Run a command line in this process; what it sets for its own process is undone."""

    def call(*arguments: object, adapter: Path | None = None) -> Result:
        chosen = [] if "--help" in arguments else ["--adapter", str(adapter or models["adapter"])]
        return CliRunner().invoke(app, [*map(str, arguments), *chosen])

    with warnings.catch_warnings(), ExitStack() as undo:
        for library in (diffusers, transformers):
            # The command sets the verbosity by environment, for libraries not imported yet; here they are.
            monkeypatch.setenv(f"{library.__name__.upper()}_VERBOSITY", "error")
            logs = library.utils.logging
            undo.callback(logs.set_verbosity, logs.get_verbosity())
            undo.callback(logs.enable_progress_bar)
            logs.set_verbosity_error()
        yield call


def refused(result: Result, *parts: str, folder: Path | None = None) -> None:
    """One line on stderr that begins with `error:` and names these parts, exit 1, nothing left behind."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("loading ", "warning: "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    if folder is not None:
        assert list(folder.iterdir()) == []


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_writes_a_picture_that_can_be_drawn_again(
    run: Llmdiff, models: dict[str, Path], tmp_path: Path
) -> None:
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    result = run("generate", "a red cat", "--out", first, "--steps", 2, "--negative-prompt", "a dog")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{first}\n"
    facts = read_metadata(first)
    expected = {"prompt": "a red cat", "negative_prompt": "a dog", "steps": "2", "guidance_scale": "3.0"}
    expected |= {"llm": str(models["llm"]), "pipeline": str(models["pipe"])}
    assert facts.items() >= (expected | {"adapter": str(models["adapter"])}).items()
    assert facts["Software"] == f"llmdiff {llmdiff.__version__}"
    assert f"torch {torch.__version__}" in facts["versions"]

    same = ("--steps", 2, "--seed", facts["seed"])
    assert run("generate", "a red cat", "--out", again, *same, "--negative-prompt", "a dog").exit_code == 0
    assert (pixels(first) == pixels(again)).all()
    assert run("generate", "two blue dog", "--out", other, *same).exit_code == 0
    assert (pixels(first) != pixels(other)).any()


def test_without_out_the_name_is_prompt_and_seed(
    run: Llmdiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("generate", "a cat", "--steps", 1, "--seed", 5).stdout == "a-cat-5.png\n"
    result = run("compare", "a cat", "--steps", 1, "--seed", 5, "--number", 1, "--save-size", 300)
    assert result.stdout == "a-cat-5-compare.png\n"
    told = read_metadata(tmp_path / "a-cat-5-compare.png")
    width, height = Image.open(tmp_path / "a-cat-5.png").size
    assert (told["save_size"], told["drawn_size"]) == ("300", f"{width} x {height}")
    assert Image.open(tmp_path / "a-cat-5-compare.png").size[0] >= 2 * 300


def test_every_picture_of_a_number_is_that_of_its_seed_alone(run: Llmdiff, tmp_path: Path) -> None:
    size = ("--steps", 1, "--height", 16, "--width", 24)
    assert (
        run("generate", "a cat", "--out", tmp_path / "a.png", "--number", 3, "--seed", 7, *size).exit_code
        == 0
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-0.png", "a-1.png", "a-2.png"]
    assert [read_metadata(tmp_path / f"a-{i}.png")["seed"] for i in range(3)] == ["7", "8", "9"]
    assert run("generate", "a cat", "--out", tmp_path / "b.png", "--seed", 9, *size).exit_code == 0
    assert pixels(tmp_path / "b.png").shape == (16, 24, 3)
    assert (pixels(tmp_path / "a-2.png") == pixels(tmp_path / "b.png")).all()


def test_scale_zero_draws_what_the_base_draws(run: Llmdiff, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert run("generate", "a cat", "--out", out, "--scale", 0, "--steps", 2, "--seed", 4).exit_code == 0
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(models["pipe"])
    seeded = torch.Generator().manual_seed(4)
    image = pipe("a cat", num_inference_steps=2, guidance_scale=3.0, generator=seeded).images[0]
    assert (pixels(out) == np.asarray(image)).all()


def test_weights_are_weights_only_where_asked_for(run: Llmdiff, tmp_path: Path) -> None:
    same = ("--steps", 2, "--seed", 3)
    plain, one, three, base = (tmp_path / f"{name}.png" for name in ("plain", "one", "three", "base"))
    assert run("generate", "a red cat", "--out", plain, *same).exit_code == 0
    assert run("generate", "a (red:1) cat", "--out", one, "--weighted", *same).exit_code == 0
    assert run("generate", "a (red:3) cat", "--out", three, "--weighted", *same).exit_code == 0
    assert (pixels(one) == pixels(plain)).all()
    assert (pixels(three) != pixels(plain)).any()
    assert read_metadata(three)["weighted"] == "yes"
    assert "weighted" not in read_metadata(plain)
    result = run("generate", "a (red:11) cat", "--out", base, "--weighted", *same)
    refused(result, "weight 11", "0 to 10")
    assert not base.exists()
    assert run("compare", "a (red:3) cat", "--out", base, "--weighted", "--number", 1, *same).exit_code == 0
    assert read_metadata(base)["weighted"] == "yes"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(run: Llmdiff, tmp_path: Path, dtype: str) -> None:
    full, half = tmp_path / "full.png", tmp_path / "half.png"
    same = ("--steps", 2, "--seed", 3)
    assert run("generate", "a red cat", "--out", full, *same).exit_code == 0
    assert run("generate", "a red cat", "--out", half, "--dtype", dtype, *same).exit_code == 0
    assert read_metadata(half)["dtype"] == dtype
    difference = np.abs(pixels(half).astype(int) - pixels(full))
    assert 0 < difference.mean() < 16


def test_code_of_an_llm_is_refused_unless_trusted(
    run: Llmdiff, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    llm, out = tmp_path / "llm", tmp_path / "a.png"
    shutil.copytree(models["llm"], llm)
    (llm / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-kind'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((llm / "config.json").read_text())
    config |= {"model_type": "own-kind", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (llm / "config.json").write_text(json.dumps(config))
    command = ("generate", "a cat", "--out", out, "--steps", 1, "--llm", llm)
    refused(run(*command), "none of it was run", "trust_remote_code=True")
    assert not out.exists()
    assert run(*command, "--trust-remote-code").exit_code == 0


def test_another_pipeline_of_the_same_shape_and_a_given_llm(
    run: Llmdiff, models: dict[str, Path], tmp_path: Path
) -> None:
    twin, out = tmp_path / "twin", tmp_path / "a.png"
    shutil.copytree(models["pipe"], twin)
    result = run("generate", "a cat", "--out", out, "--pipeline", twin, "--llm", models["llm"], "--steps", 1)
    assert result.exit_code == 0, result.output
    assert read_metadata(out)["pipeline"] == str(twin)


def test_a_closed_llm_is_asked_once_and_named_in_the_picture(
    run: Llmdiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMDIFF_HOME", str(tmp_path / "home"))
    endpoint = Endpoint(says("b d f"))
    for name in ("one.png", "two.png"):
        options = ("--steps", 2, "--seed", 1, "--reword-url", endpoint.url, "--reword-model", "closed-1")
        result = run("generate", "zebra", "--out", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
    endpoint.close()
    assert len(endpoint.requests) == 1
    assert read_metadata(tmp_path / "one.png")["reword_model"] == "closed-1"
    assert run("generate", "zebra", "--out", tmp_path / "plain.png", "--steps", 2, "--seed", 1).exit_code == 0
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "two.png")).all()
    assert (pixels(tmp_path / "one.png") != pixels(tmp_path / "plain.png")).any()


def test_half_an_address_is_refused(run: Llmdiff, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    refused(
        run("generate", "cat", "--out", out, "--reword-url", "https://host/v1"),
        "reword_model",
        folder=tmp_path,
    )
    refused(
        run("generate", "cat", "--out", out, "--reword-url", "host", "--reword-model", "m"),
        "'host'",
        folder=tmp_path,
    )


@pytest.mark.parametrize("asked", [1, 0.5])
def test_compare_shows_base_and_llm_from_the_same_seeds(run: Llmdiff, tmp_path: Path, asked: float) -> None:
    out, alone = tmp_path / "both.png", tmp_path / "alone.png"
    more = ("--scale", asked) if asked != 1 else ()  # without one, the adapter's own
    result = run("compare", "a cat", "--out", out, "--steps", 1, "--seed", 5, "--number", 2, *more)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert (
        read_metadata(out).items() >= {"prompt": "a cat", "seeds": "5, 6", "scale": str(float(asked))}.items()
    )
    sheet = pixels(out)
    for scale in (0, asked):
        run("generate", "a cat", "--out", alone, "--steps", 1, "--seed", 6, "--scale", scale)
        tile = pixels(alone)
        factor = -(-192 // tile.shape[0])
        row = tile[0].repeat(factor, axis=0)
        # The picture's first line of pixels stands somewhere in the sheet, enlarged.
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, len(row), 3))[:, :, 0, 0]
        assert (windows == row).all((-1, -2)).any(), f"scale {scale}"


@pytest.mark.parametrize("verb", ["generate", "compare"])
@pytest.mark.parametrize("prompt", ["", "  \n\t"])
def test_blank_prompts_are_refused(run: Llmdiff, tmp_path: Path, verb: str, prompt: str) -> None:
    refused(run(verb, prompt, "--out", tmp_path / "a.png"), "prompt is blank", folder=tmp_path)


def test_a_prompt_of_10000_tokens_is_cut_with_a_warning(run: Llmdiff, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    result = run("generate", "cat " * 10_000, "--out", out, "--steps", 1, "--number", 2)
    assert result.exit_code == 0, result.output
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "10000 tokens" in warned[0]
    assert read_metadata(tmp_path / "a-1.png")["prompt"] == "cat " * 10_000


@pytest.mark.parametrize(
    ("option", "model", "parts"),
    [
        ("--pipeline", "narrow_pipe", ("width 16", "24")),
        ("--pipeline", "sdxl_pipe", ("family", "Stable Diffusion XL")),
        ("--llm", "deep_llm", ("decoder blocks: 4", "made for 3")),
    ],
)
def test_models_that_do_not_fit_the_adapter(
    run: Llmdiff, models: dict[str, Path], tmp_path: Path, option: str, model: str, parts: tuple[str, ...]
) -> None:
    refused(
        run("generate", "a cat", "--out", tmp_path / "a.png", option, models[model]), *parts, folder=tmp_path
    )


@pytest.mark.parametrize("damage", ["truncated", "bit flip", "missing"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json", "manifest.json"])
def test_a_damaged_adapter_is_refused(
    run: Llmdiff, models: dict[str, Path], tmp_path: Path, damage: str, name: str
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(models["adapter"], adapter)
    out.mkdir()
    _damage(adapter / name, damage)
    result = run("generate", "a cat", "--out", out / "a.png", adapter=adapter)
    refused(result, str(adapter), "again", folder=out)


@pytest.mark.parametrize(
    ("option", "name", "parts"),
    [
        ("--pipeline", "unet/diffusion_pytorch_model.safetensors", ("again",)),
        ("--pipeline", "text_encoder/model.safetensors", ("again",)),
        ("--llm", "model.safetensors", ("truncated or damaged",)),
    ],
)
def test_truncated_models_are_refused(
    run: Llmdiff, models: dict[str, Path], tmp_path: Path, option: str, name: str, parts: tuple[str, ...]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(models["pipe" if option == "--pipeline" else "llm"], model)
    out.mkdir()
    _damage(model / name, "truncated")
    # Where the LLM draws alone, the base's text encoder is not read.
    refused(
        run("generate", "a cat", "--out", out / "a.png", "--scale", 0.5, option, model), *parts, folder=out
    )


def _damage(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
        return
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("option", "what"), [("--llm", "llm"), ("--pipeline", "pipeline"), ("--adapter", "adapter")]
)
def test_models_that_are_not_here_while_offline(run: Llmdiff, tmp_path: Path, option: str, what: str) -> None:
    name = "nobody/nothing-of-this-name"
    arguments = ("generate", "a cat", "--out", tmp_path / "a.png")
    result = run(*arguments, adapter=Path(name)) if what == "adapter" else run(*arguments, option, name)
    refused(result, what, name, folder=tmp_path)


@pytest.mark.parametrize("verb", ["generate", "compare", "evaluate"])
def test_output_that_cannot_be_written(run: Llmdiff, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("")
    prompt = [] if verb == "evaluate" else ["a cat"]
    # The adapter is missing as well: the output is looked at first.
    result = run(verb, *prompt, "--out", tmp_path / "file" / "a.png", adapter=tmp_path / "none")
    refused(result, "cannot be written")
    assert not any(line.startswith("loading") for line in result.stderr.splitlines())


def test_values_out_of_range(run: Llmdiff, tmp_path: Path) -> None:
    arguments = ("generate", "a cat", "--out", tmp_path / "a.png")
    refused(run(*arguments, "--height", 12), "height is 12", "multiple of 8", folder=tmp_path)
    refused(run(*arguments, "--device", "abacus"), "device 'abacus'", folder=tmp_path)
    for wrong in (("--steps", 0), ("--number", 0), ("--scale", 1.5), ("--seed", -1), ("--seed", 2**63)):
        assert run(*arguments, *wrong).exit_code == 2
    assert run(*arguments, "--colour", "red").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(run: Llmdiff) -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"llmdiff {llmdiff.__version__}\n"
    assert CliRunner().invoke(laboratory, ["--version"]).stdout == f"llmdiff-lab {llmdiff.__version__}\n"
    assert "serve" in CliRunner().invoke(app, ["--help"]).stdout
    for verb in ("build", "benchmark", "compare-llms", "inspect", "study"):
        assert verb in CliRunner().invoke(laboratory, ["--help"]).stdout
    for verb in ("generate", "compare", "evaluate"):
        assert verb in CliRunner().invoke(app, ["--help"]).stdout
        assert "--out" in run(verb, "--help").stdout


def in_new_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


def test_a_new_process_says_nothing_but_what_matters(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    command = ("-m", "llmdiff.cli", "generate", "a cat", "--out", out, "--steps", 1, "--adapter")
    result = in_new_process(*command, models["adapter"])
    assert (result.returncode, result.stdout) == (0, f"{out}\n")
    assert result.stderr == f"loading {models['adapter']} ...\n"
    result = in_new_process(*command, tmp_path / "none")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
