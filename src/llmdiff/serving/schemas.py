"""What the image API takes and gives: OpenAI's names, and ours for what OpenAI has no name for."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class ImageRequest(BaseModel):
    """An order of pictures. Arguments of OpenAI's that change nothing here are taken with their defaults only."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(min_length=1, max_length=32_000, description="What to draw.")]
    model: Annotated[str | None, Field(max_length=200, description="One of /v1/models.")] = None
    n: Annotated[int | None, Field(ge=1, le=10, description="Pictures, from seeds in a row.")] = None
    size: Annotated[
        str | None,
        Field(pattern=_SIZE, description='Width x height, multiples of 8, or "auto": the pipeline\'s own.'),
    ] = None
    response_format: Annotated[
        Literal["url", "b64_json"] | None,
        Field(description="A URL on this server, good for a while, or the PNG itself. Default: url."),
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, le=2**53, description="Of the first picture; default: a random one.")
    ] = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000, description="Denoising steps.")] = 20
    guidance_scale: Annotated[
        float, Field(ge=0, le=100, allow_inf_nan=False, description="Classifier-free guidance.")
    ] = 3.0
    negative_prompt: Annotated[str | None, Field(max_length=32_000, description="What not to draw.")] = None
    user: Annotated[str | None, Field(max_length=512, description="Not used.")] = None
    quality: Literal["auto", "standard"] | None = None
    output_format: Literal["png"] | None = None
    stream: Literal[False] | None = None


class Picture(BaseModel):
    """One picture, by URL or as base64 of a PNG file, with the seed that draws it again."""

    url: str | None = None
    b64_json: str | None = None
    seed: int


class ImageReply(BaseModel):
    """The pictures of one order. `created`: seconds since 1970."""

    created: int
    data: list[Picture]


class Model(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llmdiff"


class ModelList(BaseModel):
    """All models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    """How the server is."""

    status: Literal["ok", "ready"]
