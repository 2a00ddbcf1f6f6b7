"""Image-to-image: parse a form with a picture, and draw with an img2img pipeline that shares the models."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageOps
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from llmdiff.drawing.draw import DrawingSettings
from llmdiff.drawing.pictures import open_picture
from llmdiff.errors import InputFileError
from llmdiff.serving.errors import ApiError, invalid_value
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
    "mask": "masks are not supported: the whole picture is redrawn, by the amount of strength",
    "markup": "markups are not supported: describe the change in the prompt",
}


@dataclass(frozen=True, kw_only=True)
class EditSettings(DrawingSettings):
    """Settings of an edit. `strength`: the share of the denoising steps that are run; 1 is a new picture."""

    picture: Image.Image
    picture_sha256: str
    strength: float


def read_form(form: FormData) -> tuple[EditRequest, bytes]:
    """Return the order in a form and the file of its picture.

    Raises:
        RequestValidationError: a field is unknown or out of range.
        ApiError: there is not exactly one picture, or a field is not supported.
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
            raise invalid_value(name[:80], f"{name[:80]} is {what}")
        elif value not in ("", "null", "None"):  # encodings of null in forms
            fields[name] = value
    if len(pictures) != 1:
        raise invalid_value("image", f"image: got {len(pictures)} files, expected one picture")
    try:
        return EditRequest.model_validate(fields), pictures[0].file.read()
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def open_upload(content: bytes) -> tuple[Image.Image, str]:
    """Return an uploaded picture, opened by `open_picture`, and its file's SHA-256.

    Raises:
        ApiError: it is not a picture.
    """
    try:
        return open_picture(content), hashlib.sha256(content).hexdigest()
    except InputFileError as error:
        raise invalid_value("image", f"image: {error}") from error


def filled(settings: EditSettings) -> EditSettings:
    """Return the settings with the picture resized to their size and cropped to its aspect ratio."""
    assert settings.width_px is not None
    assert settings.height_px is not None
    size = (settings.width_px, settings.height_px)
    return replace(settings, picture=ImageOps.fit(settings.picture, size, Image.Resampling.LANCZOS))


def edit_class(pipe: Any) -> str | None:
    """Return the class name of a text-to-image pipeline's image-to-image counterpart; None if there is none."""
    import diffusers

    name = type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline")
    return name if hasattr(diffusers, name) else None


def edit_pipeline(pipe: Any) -> Any:
    """Return an image-to-image pipeline that shares the models of a text-to-image one with an `edit_class`."""
    import diffusers

    made: Any = getattr(diffusers, str(edit_class(pipe)))
    wanted = list(inspect.signature(made.__init__).parameters)[1:]
    return made(
        **{name: value for name, value in {**pipe.config, **pipe.components}.items() if name in wanted}
    )


def edit_inputs(pipe: Any, settings: Sequence[EditSettings]) -> Mapping[str, Any]:
    """Return the arguments of an image-to-image pipeline in place of height and width: pictures and strength."""
    sizes = {"height": settings[0].height_px, "width": settings[0].width_px}
    takes = inspect.signature(type(pipe).__call__).parameters
    return {
        "image": [one.picture for one in settings],
        "strength": settings[0].strength,
        **{name: value for name, value in sizes.items() if name in takes},
    }
