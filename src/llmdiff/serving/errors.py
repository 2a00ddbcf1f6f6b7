"""Errors in OpenAI's JSON format, without tracebacks."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llmdiff.errors import ConfigError, LLMDiffError, PromptError

# The library's argument name => the API's parameter name.
_PARAMS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "number": "n",
    "steps": "num_inference_steps",
    "height": "size",
    "width": "size",
    "size": "size",
}


class ErrorDetail(BaseModel):
    """An error: the message, its type, the parameter and a code."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(Exception):
    """An error with its HTTP status; handlers raise it, clients receive an `ErrorReply`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def error_response(error: ApiError) -> JSONResponse:
    """Return the error as a response in OpenAI's format."""
    detail = ErrorDetail(message=error.message, type=_kind(error.status), param=error.param, code=error.code)
    return JSONResponse(
        ErrorReply(error=detail).model_dump(), status_code=error.status, headers=error.headers
    )


def invalid_value(param: str, message: str) -> ApiError:
    """Return the error for an invalid parameter."""
    return ApiError(400, message, code="invalid_value", param=param)


def internal_error(request_id: str) -> ApiError:
    """Return the error for an internal exception, with the request id to look up in the log and no details."""
    return ApiError(
        500,
        f"something went wrong on the server; its log has the details under request {request_id}",
        code="internal_error",
    )


def from_library(error: LLMDiffError) -> ApiError:
    """Convert a library error: status 400 for a PromptError or ConfigError, else 500."""
    if isinstance(error, PromptError | ConfigError):
        # Our errors begin with the argument's name.
        name = str(error).split(" ", 1)[0].split("[", 1)[0]
        return ApiError(400, str(error), code="invalid_value", param=_PARAMS.get(name))
    return ApiError(500, str(error), code="drawing_failed")


def install_error_handlers(app: FastAPI) -> None:
    """Install handlers that convert every error of the app to an `ErrorReply`."""
    converters: dict[type[Exception], Callable[[Any], ApiError]] = {
        ApiError: lambda error: error,
        LLMDiffError: from_library,
        HTTPException: _from_http,
        RequestValidationError: _from_validation,
    }
    for kind, convert in converters.items():
        app.add_exception_handler(kind, _handler(convert))


def _handler(convert: Callable[[Any], ApiError]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def reply(request: Request, error: Exception) -> Response:
        return error_response(convert(error))

    return reply


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _from_http(error: HTTPException) -> ApiError:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)


def _from_validation(error: RequestValidationError) -> ApiError:
    # The first error, without the input, which may be long, private or not text.
    first: Mapping[str, Any] = error.errors()[0]
    place: Sequence[Any] = [part for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    if first.get("type") == "json_invalid":
        return ApiError(400, "the body is not valid JSON: send an object", code="invalid_json")
    param = ".".join(str(part)[:80] for part in place) or None
    reason = first.get("msg", "not valid").removeprefix("Value error, ")
    if first.get("type") == "extra_forbidden":
        reason = "there is no such parameter"
    return ApiError(400, f"{param or 'the body'}: {reason}", code="invalid_value", param=param)
