"""The API's documentation: /openapi.json, and /docs as one page without external resources."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse

from llmdiff.serving.templates import render

_CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


def install_openapi(app: FastAPI, *, needs_token: bool) -> None:
    """Add /openapi.json and the /docs page to the app."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app, needs_token)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()), headers={"Content-Security-Policy": _CSP})


def _schema(app: FastAPI, needs_token: bool) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in schema["paths"].values():
        for operation in path.values():
            # FastAPI's own schema of validation errors, which ours replaces.
            operation["responses"].pop("422", None)
    parts = schema["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    if needs_token:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        schema["paths"]["/health"]["get"]["security"] = []
    return schema


def _page(schema: dict[str, Any]) -> str:
    request = schema["components"]["schemas"]["ImageRequest"]
    arguments = [
        (
            name,
            _type(field),
            "required" if name in request["required"] else field.get("default", ""),
            field.get("description", ""),
        )
        for name, field in request["properties"].items()
    ]
    example = (
        "curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' \\\n"
        '  -d \'{"prompt": "three balloons", "seed": 3, "response_format": "b64_json"}\''
    )
    return render("api.html", schema=schema, arguments=arguments, example=example)


def _type(field: dict[str, Any]) -> str:
    options = field.get("anyOf", [field])
    words = []
    for option in options:
        if "const" in option:
            words.append(str(option["const"]).lower())
        elif "enum" in option:
            words.append(" | ".join(map(str, option["enum"])))
        elif option.get("type") != "null":
            words.append(str(option.get("type", "")))
    return ", ".join(words)
