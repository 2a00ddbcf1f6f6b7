"""Schemas of the image API: OpenAI's fields and our extensions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
_STEPS, _GUIDANCE, _STRENGTH = 20, 3.0, 0.8
_HINT = "Accepted without effect."

Format = Literal["png", "jpeg", "webp"]


class Drawing(BaseModel):
    """Fields of generations and edits. OpenAI's hints are accepted without effect; null means "not given"."""

    prompt: Annotated[str, Field(min_length=1, max_length=32_000, description="What to draw.")]
    model: Annotated[str | None, Field(max_length=200, description="One of /v1/models.")] = None
    n: Annotated[
        int | None, Field(ge=1, le=10, description="Number of pictures, from consecutive seeds.")
    ] = None
    size: Annotated[
        str | None,
        Field(
            pattern=_SIZE,
            description='Width x height, or "auto": the pipeline\'s own. The reply says which was drawn.',
        ),
    ] = None
    response_format: Annotated[
        Literal["url", "b64_json"] | None,
        Field(
            description="A temporary URL on this server, or the file itself. Default: b64_json for models "
            "named gpt-image-..., else url."
        ),
    ] = None
    output_format: Annotated[Format | None, Field(description="Format of the file. Default: png.")] = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of jpeg and webp. Default: 100.")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, le=2**53, description="Seed of the first picture; default: random.")
    ] = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000, description="Denoising steps.")] = _STEPS
    guidance_scale: Annotated[
        float, Field(ge=0, le=100, allow_inf_nan=False, description="Classifier-free guidance.")
    ] = _GUIDANCE
    negative_prompt: Annotated[str | None, Field(max_length=32_000, description="What not to draw.")] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description=_HINT)] = None
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None,
        Field(description=_HINT),
    ] = None
    complexity: Annotated[Literal["low", "medium", "high"] | None, Field(description=_HINT)] = None
    moderation: Annotated[Literal["auto", "low"] | None, Field(description=_HINT)] = None
    partial_images: Annotated[int | None, Field(ge=0, le=3, description=_HINT)] = None
    user: Annotated[str | None, Field(max_length=512, description=_HINT)] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description=_HINT)] = None
    stream: Literal[False] | None = None
    frame_count: None = None
    frame_duration_ms: None = None
    svg: None = None

    @field_validator("num_inference_steps", "guidance_scale", mode="before")
    @classmethod
    def _default_for_null(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def as_base64(self) -> bool:
        """Return whether the response holds the files; clients of gpt-image models support only that."""
        if self.response_format is None:
            return (self.model or "").startswith(("gpt-image-", "chatgpt-image-"))
        return self.response_format == "b64_json"


class ImageRequest(Drawing):
    """A request for pictures of a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    style: Annotated[Literal["vivid", "natural"] | None, Field(description=_HINT)] = None


class EditRequest(Drawing):
    """A request to edit a picture by a prompt: the fields of a form, besides its file `image`."""

    model_config = ConfigDict(extra="forbid")

    strength: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False, description="How much of the picture is redrawn; 1 is all."),
    ] = _STRENGTH
    input_fidelity: Annotated[Literal["low", "high"] | None, Field(description=_HINT)] = None


class Picture(BaseModel):
    """One picture, by URL or as base64 of its file, with the seed that draws it again."""

    url: str | None = None
    b64_json: str | None = None
    seed: int


class ImageReply(BaseModel):
    """The pictures of one request. `created`: seconds since 1970; `size`: the drawn size."""

    created: int
    data: list[Picture]
    size: str
    output_format: Format


class Model(BaseModel):
    """An available model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llmdiff"


class ModelList(BaseModel):
    """All available models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    """The state of the server."""

    status: Literal["ok", "ready"]
