"""An adapter on its way to others: the card in its folder, the Hub and back, the Hub's cache offline."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import Hub, running_hub
from huggingface_hub import ModelCard

from llmdiff import LLMController
from llmdiff.adapter.card import adapter_card
from llmdiff.errors import ConfigError, OutputError

FILES = ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "manifest.json"]

# Processes of their own: huggingface_hub reads the Hub's address, and whether to be offline, when imported.
PUSH = """
import torch
from tiny.pipelines import build_llm, build_sd
from llmdiff import LLMController
llm, pipe = build_llm(), build_sd()
controller = LLMController.create(llm, pipe, base_model_id="someone/a-base")
print(controller.push_to_hub("someone/an-adapter", private=True, license="apache-2.0"))
loaded = LLMController.from_pretrained("someone/an-adapter", llm=llm)
ours, theirs = (one.adapter.state_dict() for one in (controller, loaded))
print(all(torch.equal(value, theirs[name]) for name, value in ours.items()))
"""
PUSH_AGAIN = """
from tiny.pipelines import build_llm, build_sd
from llmdiff import LLMController
LLMController.create(build_llm(), build_sd(), max_length=99).push_to_hub("someone/an-adapter")
"""
LOAD = """
from tiny.pipelines import build_llm
from llmdiff import LLMController
controller = LLMController.from_pretrained("someone/an-adapter", llm=build_llm())
print(controller.adapter.config.base_model_id, controller.encode("a red cat").states.shape[-1])
"""


def run(script: str, home: Path, **environment: str) -> list[str]:
    """What a script prints, in a process with a Hub cache of its own."""
    tests = Path(__file__).parent
    known = {**os.environ, "HF_HOME": str(home), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}
    known["PYTHONPATH"] = os.pathsep.join([str(tests), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.slow
def test_what_is_pushed_is_whole_and_loads_from_the_hub_and_offline_from_its_cache(tmp_path: Path) -> None:
    hub: Hub
    with running_hub() as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        address, same = run(PUSH, tmp_path, **online)
        assert address.startswith(f"{hub.endpoint}/someone/an-adapter/commit/")
        assert same == "True"
        settings = hub.settings["someone/an-adapter"]
        # Older clients say it in another word.
        assert settings.get("visibility") == "private" or settings.get("private") is True
        files = hub.repositories["someone/an-adapter"]
        assert hub.commits == [FILES]
        card = ModelCard(files["README.md"].decode())
        assert card.data.to_dict()["license"] == "apache-2.0"
        assert card.data.to_dict()["base_model"] == ["someone/a-base"]
        assert 'from_pretrained("someone/an-adapter")' in card.text

        files["README.md"] = b"By its author."
        run(PUSH_AGAIN, tmp_path, **online)
        assert hub.commits[1] == FILES[1:]
        assert files["README.md"] == b"By its author."
    # The first upload is what the cache holds; the server is gone.
    assert run(LOAD, tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1") == ["someone/a-base", "16"]


def test_a_saved_folder_has_a_card_and_keeps_its_authors(pipe: Any, tiny_llm: Any, tmp_path: Path) -> None:
    controller = LLMController.create(tiny_llm, pipe)
    folder = tmp_path / "my-adapter"
    controller.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    card = ModelCard.load(folder / "README.md")
    assert "# my-adapter" in card.text
    assert card.data.to_dict()["library_name"] == "llmdiff"
    (folder / "README.md").write_text("By its author.")
    controller.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "By its author."
    # The manifest does not hold the card: writing in it damages nothing.
    loaded = LLMController.from_pretrained(folder, llm=tiny_llm)
    assert loaded.adapter.config.family == controller.adapter.config.family


LOCAL = [
    "/home/ann/llms/secret",
    "../secret",
    "~/secret",
    r"C:\llms\secret",
    "C:/secret",
    "./a/secret",
    "a/b/c/secret",
]
LOCAL += ["secret.gguf", "llms/secret.gguf", "/llms/secret.gguf", "llms/secret/", "file://secret"]


@pytest.mark.hostile("private paths")
@pytest.mark.parametrize("place", LOCAL)
@pytest.mark.parametrize("name", ["llm_id", "base_model_id"])
def test_a_place_on_this_machine_is_not_uploaded(sd_pipe: Any, make_llm: Any, name: str, place: str) -> None:
    names = {"llm_id": "someone/an-llm", "base_model_id": "someone/a-base"} | {name: place}
    llm = make_llm(id=names["llm_id"])
    controller = LLMController.create(llm, sd_pipe, base_model_id=names["base_model_id"])
    with pytest.raises(
        ConfigError, match=f'{name} .* is a place on this machine.* pass {name}="owner/name"'
    ) as caught:
        controller.push_to_hub("someone/an-adapter")
    assert "\n" not in str(caught.value)
    # Nor is one that is given instead.
    with pytest.raises(ConfigError, match="is a place on this machine"):
        controller.push_to_hub("someone/an-adapter", **{name: place})
    assert "secret" not in adapter_card(controller.adapter, repo_id="someone/an-adapter")


@pytest.mark.hostile("private paths")
@pytest.mark.parametrize("place", ["llms/secret", "secret"])
def test_a_folder_here_that_looks_like_an_id_is_not_uploaded(
    sd_pipe: Any, make_llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    controller = LLMController.create(make_llm(id=place), sd_pipe, base_model_id=place)
    with pytest.raises(ConfigError, match="is a place on this machine"):
        controller.push_to_hub("someone/an-adapter")
    controller.save_pretrained(tmp_path / "saved")
    assert "secret" not in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.hostile("private paths")
def test_public_names_are_uploaded_in_the_place_of_private_ones(
    sd_pipe: Any, make_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, str] = {}

    class Api:
        """Takes what is uploaded."""

        def create_repo(self, *args: Any, **options: Any) -> None:
            pass

        def file_exists(self, *args: Any) -> bool:
            return False

        def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
            sent.update(
                {
                    path.name: path.read_text()
                    for path in Path(folder_path).iterdir()
                    if path.suffix != ".safetensors"
                }
            )
            return SimpleNamespace(commit_url="sent")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    controller = LLMController.create(make_llm(id="/home/ann/llm"), sd_pipe, base_model_id="/home/ann/base")
    controller.push_to_hub("someone/an-adapter", llm_id="someone/an-llm", base_model_id="")
    assert not any("/home/ann" in text for text in sent.values())
    config = json.loads(sent["config.json"])
    assert (config["llm_id"], config["base_model_id"]) == ("someone/an-llm", "")
    assert "[someone/an-llm](https://huggingface.co/someone/an-llm)" in sent["README.md"]
    # The adapter here keeps its names.
    assert controller.adapter.config.llm_id == "/home/ann/llm"
    for name in ("openmoji", "smollm2-135m", "gpt2", "someone/a-llm", "someone/a-llm/file.gguf"):
        controller.push_to_hub("someone/an-adapter", llm_id=name, base_model_id=name)
        assert json.loads(sent["config.json"])["llm_id"] == name


def test_a_hub_that_is_not_there_is_one_line(sd_pipe: Any, tiny_llm: Any) -> None:
    controller = LLMController.create(tiny_llm, sd_pipe)
    for name in ("someone/an-adapter", "not a name!"):
        with pytest.raises(OutputError, match=f"repo_id '{name}' cannot be uploaded to") as caught:
            controller.push_to_hub(name)
        assert "\n" not in str(caught.value)
