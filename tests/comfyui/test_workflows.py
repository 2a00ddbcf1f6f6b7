"""The example workflows: whole files, and drawn by ComfyUI through its HTTP API from a clean folder."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_sized import HOME, comfy_sized_sd, comfy_sized_sdxl
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from tiny.pipelines import build_llm

from comfyui.names import block_names
from llmdiff import LLMController
from tests.llmdiff.adapter.conftest import build_adapter

PACK = Path(__file__).parents[2] / "comfyui"
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
# How ComfyUI's main.py is started; its arguments are added.
COMMAND = os.environ.get("LLMDIFF_COMFYUI_COMMAND", f"{sys.executable} main.py")
START_S, DRAW_S = 600, 600


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_whole(path: Path) -> None:
    workflow = json.loads(path.read_text("utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    kinds = {node["type"] for node in nodes.values()}
    assert {"LLMDiffLoadLLM", "LLMDiffLoadAdapter", "LLMDiffApply", "LLMDiffEncode", "SaveImage"} <= kinds
    for _, source, _, target, slot, kind in workflow["links"]:
        assert nodes[source]["outputs"]
        assert nodes[target]["inputs"][slot]["type"] == kind
    assert "randomize" not in json.dumps(workflow)  # a recorded seed is drawn again


def prompt_of(workflow: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """A workflow as ComfyUI's API takes it, as its page converts it."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        schema = known[node["type"]]["input"]
        values = list(node.get("widgets_values") or [])
        linked = {row["name"]: links[row["link"]] for row in node["inputs"] if row.get("link") is not None}
        inputs = {}
        for name, (kind, *more) in {**schema.get("required", {}), **schema.get("optional", {})}.items():
            options = more[0] if more else {}
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate"):
                    values.pop(0)
            if name in linked:
                inputs[name] = linked[name]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


class Server:
    """A running ComfyUI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        options = (
            f"--cpu --disable-api-nodes --disable-auto-launch --port {port} --database-url sqlite:///:memory:"
        )
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [*shlex.split(COMMAND), *options.split(), "--base-directory", str(folder)],
            cwd=HOME,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.wait(lambda: self.ask("/system_stats"), START_S)

    def wait(self, done: Callable[[], Any], seconds: float) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-2000:]
            try:
                if result := done():
                    return result
            except urllib.error.URLError:
                pass
            time.sleep(0.5)
        raise TimeoutError((self.folder / "log.txt").read_text()[-2000:])

    def ask(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.address + path, data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The record of a finished prompt; the answer itself if it was refused."""
        answer = self.ask("/prompt", {"prompt": prompt})
        if "prompt_id" not in answer:
            return dict(answer)
        name = answer["prompt_id"]
        return dict(self.wait(lambda: self.ask(f"/history/{name}").get(name), DRAW_S))

    def picture(self, prompt: dict[str, Any]) -> np.ndarray[Any, Any]:
        record = self.run(prompt)
        last = record["status"]["messages"][-1][1]
        assert record["status"]["status_str"] == "success", (
            last.get("exception_message"),
            last.get("traceback", [])[-2:],
        )
        (image,) = [image for output in record["outputs"].values() for image in output["images"]]
        with Image.open(self.folder / "output" / image["subfolder"] / image["filename"]) as opened:
            return np.asarray(opened.convert("RGB")).astype(int)


def write_controlnet(unet: Any, path: Path) -> None:
    """A random ControlNet for this U-Net, under the names of the original code."""
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96, 256))
    torch.manual_seed(3)
    weights = {}
    names = block_names(
        name for name in _original_names(unet) if not name.startswith(("output_blocks.", "out."))
    )
    renamed = {new: old for old, new in names.items()}
    inner = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    inner |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    for name, weight in control.state_dict().items():
        parts = name.split(".")
        weight = weight if weight.abs().sum() > 0 or "norm" in name else torch.randn_like(weight) * 0.2
        if parts[0] == "controlnet_cond_embedding":
            # conv_in, blocks 0 to 5, conv_out: every second module of a sequence, between activations.
            place = 0 if parts[1] == "conv_in" else 14 if parts[1] == "conv_out" else 2 * int(parts[2]) + 2
            weights[f"input_hint_block.{place}.{parts[-1]}"] = weight
        elif parts[0] == "controlnet_down_blocks":
            weights[f"zero_convs.{parts[1]}.0.{parts[-1]}"] = weight
        elif parts[0] == "controlnet_mid_block":
            weights[f"middle_block_out.0.{parts[-1]}"] = weight
        else:
            for length in (4, 3, 2, 1):
                block = ".".join(parts[:length])
                if block in renamed:
                    rest = ".".join(parts[length:])
                    if ".resnets." in block:
                        rest = next(
                            f"{old}.{parts[-1]}" for new, old in inner.items() if rest.startswith(new)
                        )
                    elif "downsamplers" in block:
                        rest = f"op.{parts[-1]}"
                    weights[f"{renamed[block]}.{rest}"] = weight
                    break
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


def _original_names(unet: Any) -> list[str]:
    from test_names import original_names

    return original_names(unet)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if HOME is None:
        pytest.skip("LLMDIFF_COMFYUI names no checkout of ComfyUI")
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "user", "input", "output", "models"):
        (folder / name).mkdir()
    shutil.copytree(PACK, folder / "custom_nodes" / "llmdiff", ignore=shutil.ignore_patterns("__pycache__"))
    models = folder / "models"
    llm = build_llm()
    llm.model.save_pretrained(models / "text_encoders" / "tiny-llama")
    llm.tokenizer.save_pretrained(models / "text_encoders" / "tiny-llama")
    for name, pipe in (("sd", comfy_sized_sd()), ("sdxl", comfy_sized_sdxl())):
        pipe.save_pretrained(models / "diffusers" / name)
        adapter = build_adapter(pipe, llm)
        adapter.save_pretrained(models / "llmdiff" / name)
        if name == "sd":
            (models / "controlnet").mkdir()
            write_controlnet(pipe.unet, models / "controlnet" / "tiny.safetensors")
            layer, row = next(iter(adapter.config.cross_attention.items()))
            key = f"lora_unet_{layer.replace('.', '_')}_to_out_0"
            up, down = torch.randn(row["out_dim"], 4), torch.randn(4, row["inner_dim"])
            (models / "loras").mkdir()
            save_file(
                {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down},
                models / "loras" / "tiny.safetensors",
            )
    Image.new("RGB", (64, 64), "red").save(folder / "input" / "sketch.png")
    running = Server(folder)
    yield running
    running.process.terminate()
    running.process.wait(60)
    running.log.close()


def tiny(workflow: Path, server: Server) -> dict[str, Any]:
    """An example's prompt with tiny models in the place of the released ones."""
    prompt = prompt_of(json.loads(workflow.read_text("utf-8")), server.ask("/object_info"))
    base = "sdxl" if workflow.stem == "sdxl" else "sd"
    values = {
        "LLMDiffLoadLLM": {"llm_name": "tiny-llama"},
        "LLMDiffLoadAdapter": {"adapter_name": base},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "LoraLoaderModelOnly": {"lora_name": "tiny.safetensors"},
        "ControlNetLoader": {"control_net_name": "tiny.safetensors"},
        "LoadImage": {"image": "sketch.png"},
        "KSampler": {"steps": 3},
    }
    for name, node in prompt.items():
        if node["class_type"] == "CheckpointLoaderSimple":
            prompt[name] = {"class_type": "LLMDiffLoadBase", "inputs": {"base_name": base}}
            for other in prompt.values():
                for key, value in other["inputs"].items():
                    if value == [name, 2]:  # the VAE is a checkpoint's third output, and a base's second
                        other["inputs"][key] = [name, 1]
        node["inputs"].update(values.get(node["class_type"], {}))
    return prompt


def of_kind(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    inputs: dict[str, Any] = next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)
    return inputs


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if path.stem != "embedded_default"], ids=lambda path: path.stem
)
def test_a_workflow_runs_with_tiny_models(path: Path, server: Server) -> None:
    prompt = tiny(path, server)
    drawn = server.picture(prompt)
    assert drawn.std() > 1
    of_kind(prompt, "LLMDiffEncode")["text"] = "the green apple above a car"
    assert abs(server.picture(prompt) - drawn).max() > 2
    for kind, name in (("LoraLoaderModelOnly", "strength_model"), ("ControlNetApplyAdvanced", "strength")):
        if any(node["class_type"] == kind for node in prompt.values()):
            with_it = server.picture(prompt)
            of_kind(prompt, kind)[name] = 0.0
            assert abs(server.picture(prompt) - with_it).max() > 2, kind


def test_the_embedded_default_draws_the_librarys_picture(server: Server) -> None:
    path = PACK / "example_workflows" / "embedded_default.json"
    drawn = server.picture(prompt_of(json.loads(path.read_text("utf-8")), server.ask("/object_info")))
    controller = LLMController.from_pretrained("openmoji")
    pipe = controller.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with controller.attached(pipe):
        expected = pipe(
            "a red car to the left of a green tree",
            negative_prompt="",
            num_inference_steps=10,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
    # ComfyUI cuts off the fraction of a level that diffusers rounds.
    assert abs(drawn - np.asarray(expected).astype(int)).max() <= 1


def test_a_workflow_of_an_older_version_runs(server: Server) -> None:
    # Inputs that a later version has added are missing in it.
    prompt = tiny(PACK / "example_workflows" / "text_to_image.json", server)
    drawn = server.picture(prompt)
    known = server.ask("/object_info")
    for node in prompt.values():
        if node["class_type"].startswith("LLMDiff"):
            required = known[node["class_type"]]["input"]["required"]
            node["inputs"] = {name: value for name, value in node["inputs"].items() if name in required}
    assert np.array_equal(server.picture(prompt), drawn)


def test_a_missing_llm_and_an_adapter_for_another_unet_are_named(server: Server) -> None:
    prompt = tiny(PACK / "example_workflows" / "text_to_image.json", server)
    of_kind(prompt, "LLMDiffLoadLLM")["llm_name"] = "gone"
    assert "'gone' is in none of" in json.dumps(server.run(prompt)["status"])
    prompt = tiny(PACK / "example_workflows" / "text_to_image.json", server)
    of_kind(prompt, "LLMDiffLoadAdapter")["adapter_name"] = "sdxl"
    assert "the adapter was made for" in json.dumps(server.run(prompt)["status"])
