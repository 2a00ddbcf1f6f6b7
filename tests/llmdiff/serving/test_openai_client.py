"""OpenAI's own client against the running server: what its users send works, or is refused by name."""

import base64
import inspect
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import ExifTags, Image

from llmdiff.serving.api import create_app
from llmdiff.serving.pipeline_drawer import PipelineDrawer
from llmdiff.serving.settings import ServeSettings
from tests.docs.openai_table import GENERATE, PAGE, table
from tests.docs.written import on_page
from tests.llmdiff.serving.conftest import serving, wait_until
from tests.llmdiff.serving.test_api import alone, pixels

FEW = {"seed": 3, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def address(built: PipelineDrawer) -> Iterator[str]:
    settings = ServeSettings(model_aliases=("gpt-image-1", "dall-e-3"), size_policy="nearest")
    app = create_app(lambda: built, settings)
    with serving(app) as (url, _):
        wait_until(lambda: httpx2.get(f"{url}/ready").status_code == 200)
        yield url


@pytest.fixture(scope="module")
def built() -> PipelineDrawer:
    from tiny.pipelines import build_llm, build_sd

    from llmdiff.controller import LLMController
    from llmdiff.drawing.models import Models

    pipe = build_sd()
    return PipelineDrawer(LLMController.create(build_llm(), pipe), pipe, Models())


@pytest.fixture(scope="module")
def images(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client.images


def file(reply: Any) -> bytes:
    return base64.b64decode(reply.data[0].b64_json)


def png(size: tuple[int, int] = (32, 32), mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    content = io.BytesIO()
    image.save(content, **{"format": "PNG"} | options)
    return content.getvalue()


def values(outcome: str) -> list[tuple[str, Any]]:
    """Every parameter of `images.generate` with each of its values that has this outcome."""
    return [(name, value) for name, one in GENERATE.items() for value in getattr(one, outcome)]


def shown(asked: Any) -> str:
    return json.dumps(asked)


def test_the_table_has_every_parameter_of_the_client_and_is_on_the_page(images: Any) -> None:
    every = set(inspect.signature(images.generate).parameters)
    assert set(GENERATE) == every - {"extra_headers", "extra_query", "extra_body", "timeout"}
    assert on_page(PAGE, "openai") == table(), "run python tests/docs/openai_table.py"


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize("asked", values("works"), ids=shown)
def test_values_that_work_give_as_many_pictures_as_asked(images: Any, asked: tuple[str, Any]) -> None:
    given = {"prompt": "a red cat", "extra_body": FEW | {"num_inference_steps": 1}} | dict([asked])
    reply = images.generate(**given)
    assert len(reply.data) == given.get("n", 1)
    assert all(one.url or one.b64_json for one in reply.data)


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize("asked", values("ignored"), ids=shown)
def test_hints_are_taken_and_change_nothing(
    images: Any, built: PipelineDrawer, asked: tuple[str, Any]
) -> None:
    given = {"prompt": "a red cat", "response_format": "b64_json"} | dict([asked])
    reply = images.generate(**given, extra_body=FEW)
    assert (pixels(file(reply)) == alone(built)).all()


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize("asked", values("refused"), ids=shown)
def test_values_that_are_refused_are_named(images: Any, asked: tuple[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        images.generate(**{"prompt": "a red cat"} | dict([asked]))
    assert caught.value.param == asked[0]


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    "name",
    [
        "background", "model", "moderation", "n", "output_compression", "output_format", "partial_images",
        "quality", "response_format", "size", "stream", "style", "user", "safety_identifier", "complexity",
        "frame_count", "frame_duration_ms", "svg", "num_inference_steps", "guidance_scale", "negative_prompt", "seed",
    ],
)  # fmt: skip
def test_null_is_not_given(address: str, name: str) -> None:
    asked = {"prompt": "a red cat", "num_inference_steps": 1, name: None}
    reply = httpx2.post(f"{address}/v1/images/generations", json=asked, timeout=60)
    assert reply.status_code == 200, reply.text


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ("1024x1024", "16x16"),
        ("1792x1024", "24x16"),
        ("1024x1792", "16x24"),
        ("256x256", "16x16"),
        ("16x16", "16x16"),
        ("9000x100", "24x8"),
        ("13x13", "16x16"),
        ("auto", "16x16"),
    ],
)
def test_sizes_are_drawn_as_the_pipelines_own_and_the_reply_says_which(
    images: Any, size: str, drawn: str
) -> None:
    raw = images.with_raw_response.generate(
        prompt="a red cat", size=size, response_format="b64_json", extra_body=FEW
    )
    reply = raw.parse()
    assert "x".join(map(str, Image.open(io.BytesIO(file(reply))).size)) == drawn == reply.size
    assert raw.headers.get("x-size-asked") == (None if size in ("auto", drawn) else size)


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    ("kind", "quality"), [("jpeg", 100), ("webp", None), ("jpeg", 5), ("webp", 5), ("png", None)]
)
def test_formats(images: Any, address: str, built: PipelineDrawer, kind: str, quality: int | None) -> None:
    asked = {"output_format": kind, "output_compression": quality, "extra_body": FEW}
    reply = images.generate(prompt="a red cat", response_format="b64_json", **asked)
    assert reply.output_format == kind
    with Image.open(io.BytesIO(file(reply))) as image:
        assert image.format == kind.upper()
        if quality != 5:
            # In grey: WebP keeps colours at half the resolution, and these are noise.
            ours, theirs = (
                np.asarray(one.convert("L"), dtype=float) for one in (image, Image.fromarray(alone(built)))
            )
            assert np.abs(ours - theirs).mean() < 4
        told = image.text if kind == "png" else json.loads(image.getexif()[ExifTags.Base.ImageDescription])
    assert (told["prompt"], told["seed"]) == ("a red cat", "3")
    url = images.generate(prompt="a red cat", **asked).data[0].url
    assert url.endswith(f".{kind}")
    found = httpx2.get(url)
    assert found.headers["content-type"] == f"image/{kind}"
    assert found.content == file(reply)


@pytest.mark.hostile("openai client")
def test_names_that_clients_have_built_in(images: Any, address: str) -> None:
    # Clients of gpt-image models know no URLs, and send no response_format.
    reply = images.generate(model="gpt-image-1", prompt="a red cat", extra_body=FEW)
    assert file(reply).startswith(b"\x89PNG")
    assert images.generate(model="dall-e-3", prompt="a red cat", extra_body=FEW).data[0].url
    listed = httpx2.get(f"{address}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["openmoji", "gpt-image-1", "dall-e-3"]
    assert httpx2.get(f"{address}/v1/models/dall-e-3").json()["id"] == "dall-e-3"
    with pytest.raises(openai.NotFoundError, match="--model-alias"):
        images.generate(model="gpt-image-2", prompt="a red cat")


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"output_format": "png", "output_compression": 50}, "output_compression"),
        ({"quality": "best"}, "quality"),
        ({"style": "bold"}, "style"),
        ({"prompt": "\ufeff \u200b"}, "prompt"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(images: Any, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        images.generate(**{"prompt": "a red cat"} | asked)
    assert caught.value.param == param


@pytest.mark.hostile("texts")
def test_a_mark_before_a_prompt_changes_no_picture(images: Any, built: PipelineDrawer) -> None:
    reply = images.generate(prompt="\ufeffa red cat\u200b", response_format="b64_json", extra_body=FEW)
    assert (pixels(file(reply)) == alone(built)).all()


@pytest.mark.hostile("openai client")
def test_a_picture_is_drawn_on(images: Any, built: PipelineDrawer) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline
    from torch import Generator

    asked = {"prompt": "a red cat", "response_format": "b64_json", "extra_body": FEW | {"strength": 0.5}}
    reply = images.edit(image=png(), n=2, **asked)
    assert [one.seed for one in reply.data] == [3, 4]

    # The same by hand: the pipeline of diffusers, the LLM attached, the picture at the pipeline's own size.
    pipe = StableDiffusionImg2ImgPipeline(**built.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    small = Image.open(io.BytesIO(png())).resize((16, 16), Image.Resampling.LANCZOS)
    with built.controller.attached(pipe):
        expected = pipe(
            "a red cat",
            image=small,
            strength=0.5,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=Generator().manual_seed(3),
        ).images[0]
    assert (pixels(file(reply)) == np.asarray(expected)).all()
    assert not (pixels(file(reply)) == alone(built)).all()
    told = Image.open(io.BytesIO(file(reply))).text
    assert (told["strength"], told["prompt"], len(told["image_sha256"])) == ("0.5", "a red cat", 64)
    # Drawing from text alone afterwards is what it was.
    plain = images.generate(prompt="a red cat", response_format="b64_json", extra_body=FEW)
    assert (pixels(file(plain)) == alone(built)).all()


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    ("size", "asked", "drawn"),
    [
        ((64, 32), None, "24x8"),
        ((32, 64), "auto", "8x24"),
        ((64, 32), "1024x1024", "16x16"),
        ((500, 500), None, "16x16"),
    ],
)
def test_the_size_of_an_edit_is_the_pictures_shape(
    images: Any, size: tuple[int, int], asked: str | None, drawn: str
) -> None:
    reply = images.edit(
        image=png(size), prompt="a cat", size=asked, response_format="b64_json", extra_body=FEW
    )
    assert reply.size == drawn == "x".join(map(str, Image.open(io.BytesIO(file(reply))).size))


@pytest.mark.hostile("openai client")
def test_a_picture_is_drawn_on_as_a_viewer_shows_it(images: Any) -> None:
    def edited(content: bytes) -> np.ndarray:
        asked: dict[str, Any] = {"prompt": "a cat", "response_format": "b64_json"}
        return pixels(file(images.edit(image=content, **asked, extra_body=FEW | {"strength": 0.5})))

    upright = Image.open(io.BytesIO(png((24, 32))))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(lying, format="PNG", exif=exif)
    assert (edited(lying.getvalue()) == edited(png((24, 32)))).all()
    assert (edited(png(format="WEBP", lossless=True)) == edited(png())).all()


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"image": b"no picture"}, "image", "is none of PNG"),
        ({"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "image", "is none of PNG"),
        ({"image": b""}, "image", "is none of PNG"),
        ({"image": [png(), png()]}, "image", "got 2 files, expected one"),
        ({"mask": png()}, "mask", "masks are not supported"),
        ({"extra_body": {"strength": "nan"}}, "strength", "strength"),
        ({"extra_body": {"strength": 0}}, "strength", "strength"),
        ({"extra_body": {"strength": 0.01}}, "strength", "at least one of 20 steps"),
        ({"extra_body": {"colour": "red"}}, "colour", "colour"),
        ({"n": 11}, "n", "n"),
        ({"background": "transparent"}, "background", "background"),
        ({"prompt": " "}, "prompt", "blank"),
    ],
)
def test_edits_that_cannot_be_are_refused_by_name(
    images: Any, asked: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        images.edit(**{"image": png(), "prompt": "a cat"} | asked)
    assert caught.value.param == param


@pytest.mark.hostile("openai client")
def test_hints_of_an_edit_are_taken(images: Any) -> None:
    hints: dict[str, Any] = {"background": "auto", "quality": "high", "user": "me", "input_fidelity": "high"}
    reply = images.edit(
        image=[png()], prompt="a cat", model="gpt-image-1", output_format="jpeg", extra_body=FEW, **hints
    )
    assert file(reply).startswith(b"\xff\xd8")


@pytest.mark.parametrize("content", [b"", b"--x\r\n", b"image=1&prompt=2"])
@pytest.mark.hostile("openai client")
def test_forms_that_are_none_are_refused(address: str, content: bytes) -> None:
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        reply = httpx2.post(
            f"{address}/v1/images/edits", content=content, headers={"Content-Type": kind}, timeout=60
        )
        assert reply.status_code == 400, reply.text
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_the_first_page_leads_to_the_docs(address: str) -> None:
    reply = httpx2.get(f"{address}/", follow_redirects=True)
    assert reply.status_code == 200
    assert "/v1/images/edits" in reply.text
    schema = httpx2.get(f"{address}/openapi.json").json()
    form = schema["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert {"image", "prompt", "strength"} <= set(form["properties"])


@pytest.mark.hostile("openai client")
def test_a_pipeline_that_draws_on_none_says_so(make_llm: Any) -> None:
    from starlette.testclient import TestClient

    class Fixed:
        """Draws on nothing."""

        size_px, multiple_px, can_edit = (16, 16), 8, False

        def draw(self, *args: Any, **options: Any) -> list[bytes]:
            raise AssertionError

    with TestClient(create_app(Fixed, ServeSettings())) as http:
        wait_until(lambda: http.get("/ready").status_code == 200)
        reply = http.post("/v1/images/edits", data={"prompt": "a cat"}, files={"image": png()})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported")


@pytest.mark.hostile("openai client")
@pytest.mark.parametrize(
    ("family", "can"), [("sdxl", True), ("sd3", True), ("flux", True), ("pixart", False), ("sana", False)]
)
def test_every_family_that_draws_on_pictures_does(make_llm: Any, family: str, can: bool) -> None:
    from tiny.families import BUILDERS

    from llmdiff.controller import LLMController
    from llmdiff.drawing.models import Models
    from llmdiff.serving.editing import EditSettings

    pipe = BUILDERS[family]()
    drawer = PipelineDrawer(LLMController.create(make_llm(), pipe), pipe, Models())
    assert drawer.can_edit is can
    if not can:
        return
    height, width = drawer.size_px
    drawn = []
    for value in (0, 255):
        picture = Image.new("RGB", (width, height), (value, value, value))
        order = EditSettings(
            prompt="a cat", seed=3, steps=4, height_px=height, width_px=width,
            picture=picture, picture_sha256="", strength=0.5,
        )  # fmt: skip
        drawn.append(pixels(drawer.draw([order, order], [3, 4], on_step=lambda: None)[1]))
    assert drawn[0].shape == (height, width, 3)
    assert not np.array_equal(*drawn)


def test_whoever_sits_at_a_terminal_reads_where_to_go(adapter: Any) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llmdiff.cli", "serve", "--adapter", str(adapter), "--port", "0"]
    options = ["--model-alias", "gpt-image-1", "--model-alias", "x", "--size-policy", "nearest"]
    process = subprocess.Popen([*command, *options], stdout=theirs, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        port = next(
            event["port"] for event in map(json.loads, process.stderr) if event["event"] == "listening"
        )
        assert f"docs at http://127.0.0.1:{port}/ (Ctrl-C ends)" in os.read(ours, 1000).decode()
        listed = httpx2.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).json()["data"]
        assert [model["id"] for model in listed] == ["adapter", "gpt-image-1", "x"]
    finally:
        process.terminate()
        process.communicate()
