"""Image-to-image: a form with a picture becomes an order, and a pipeline of the same parts draws it."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageOps
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from llmdiff.adapter.families import family_of
from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.pictures import open_picture
from llmdiff.errors import InputFileError
from llmdiff.serving.errors import ApiError
from llmdiff.serving.schemas import EditRequest

MAX_FIELDS = 64
_SCHEMA = EditRequest.model_json_schema()
FORM = {
    **_SCHEMA,
    "properties": {"image": {"type": "string", "format": "binary"}, **_SCHEMA["properties"]},
    "required": ["image", *_SCHEMA["required"]],
}
"""The form's description, for /openapi.json."""
_IMAGES = ("image", "image[]")
_REFUSED = {
    "mask": "masks are not supported: the whole picture is drawn anew, as much as strength says",
    "markup": "markups are not supported: say in the prompt what to change",
}


@dataclass(frozen=True, kw_only=True)
class EditSettings(DrawingSettings):
    """How to draw on a picture. `strength`: the share of the steps that are drawn, 1 is a new picture."""

    picture: Image.Image
    picture_sha256: str
    strength: float


def read_form(form: FormData) -> tuple[EditRequest, bytes]:
    """Return the order in a form and the file of its picture.

    Raises:
        RequestValidationError: a field is unknown or out of range.
        ApiError: there is not one picture, or something is asked for that this server does not do.
    """
    fields: dict[str, str] = {}
    pictures: list[UploadFile] = []
    for name, value in form.multi_items():
        if name in _REFUSED:
            raise ApiError(400, _REFUSED[name], code="unsupported", param=name)
        if name in _IMAGES and isinstance(value, UploadFile):
            pictures.append(value)
        elif isinstance(value, UploadFile) or name in _IMAGES or name in fields:
            what = "a file" if isinstance(value, UploadFile) else "text" if name in _IMAGES else "given twice"
            raise ApiError(400, f"{name[:80]} is {what}", code="invalid_value", param=name[:80])
        elif value not in ("", "null", "None"):  # how clients write null in a form
            fields[name] = value
    if len(pictures) != 1:
        raise ApiError(
            400,
            f"image: got {len(pictures)} files, expected one picture",
            code="invalid_value",
            param="image",
        )
    try:
        return EditRequest.model_validate(fields), pictures[0].file.read()
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def open_upload(content: bytes) -> tuple[Image.Image, str]:
    """Return an uploaded picture, as a viewer shows it, and its file's SHA-256.

    Raises:
        ApiError: it is no picture.
    """
    try:
        return open_picture(content), hashlib.sha256(content).hexdigest()
    except InputFileError as error:
        raise ApiError(400, f"image: {error}", code="invalid_value", param="image") from error


def filled(settings: EditSettings) -> EditSettings:
    """Return the settings with their picture resized to their size; what is too wide or high for its shape is cut."""
    assert settings.width_px is not None
    assert settings.height_px is not None
    size = (settings.width_px, settings.height_px)
    return replace(settings, picture=ImageOps.fit(settings.picture, size, Image.Resampling.LANCZOS))


def edit_class(pipe: Any) -> str | None:
    """Return the name of the image-to-image pipeline beside a text-to-image one; None if its family has none."""
    name = type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline")
    return name if name in family_of(pipe).pipelines else None


def edit_pipeline(pipe: Any) -> Any:
    """Return the image-to-image pipeline with the parts of a text-to-image one that has an `edit_class`."""
    import diffusers

    made: Any = getattr(diffusers, str(edit_class(pipe)))
    wanted = list(inspect.signature(made.__init__).parameters)[1:]
    return made(
        **{name: value for name, value in {**pipe.config, **pipe.components}.items() if name in wanted}
    )


def edit_inputs(pipe: Any, settings: Sequence[EditSettings]) -> Mapping[str, Any]:
    """Return what an image-to-image pipeline takes instead of a size alone: pictures of that size and the strength."""
    sizes = {"height": settings[0].height_px, "width": settings[0].width_px}
    takes = inspect.signature(type(pipe).__call__).parameters
    return {
        "image": [one.picture for one in settings],
        "strength": settings[0].strength,
        **{name: value for name, value in sizes.items() if name in takes},
    }
