"""The API's description: /openapi.json, and /docs as one page that needs nothing from elsewhere."""

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse

_CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem;
border-bottom: 1px solid #8884; vertical-align: top; } code, pre { font-family: ui-monospace, monospace; }
pre { background: #8882; padding: 1rem; overflow-x: auto; } :root { color-scheme: light dark; }
"""


def install_openapi(app: FastAPI, *, needs_token: bool) -> None:
    """Give the app its /openapi.json and its /docs page; returns nothing."""

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
            # FastAPI's own format of validation errors, which ours replaces.
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
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', ''))}</td></tr>"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    request = schema["components"]["schemas"]["ImageRequest"]
    arguments = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(facts))}</td>"
        f"<td>{'required' if name in request['required'] else escape(str(facts.get('default', '')))}</td>"
        f"<td>{escape(facts.get('description', ''))}</td></tr>"
        for name, facts in request["properties"].items()
    )
    example = (
        "curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' \\\n"
        '  -d \'{"prompt": "a cat to the left of a red car", "seed": 3, "response_format": "b64_json"}\''
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(schema['info']['title'])} API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"
        f"<p>{escape(schema['info']['description'])} The whole description, for programs: "
        f"<a href=openapi.json>openapi.json</a>.</p><table>{rows}</table>"
        f"<h2>Arguments of POST /v1/images/generations</h2><table>{arguments}</table>"
        f"<h2>Example</h2><pre>{escape(example)}</pre></html>"
    )


def _type(facts: dict[str, Any]) -> str:
    options = facts.get("anyOf", [facts])
    words = []
    for option in options:
        if "const" in option:
            words.append(str(option["const"]).lower())
        elif "enum" in option:
            words.append(" | ".join(map(str, option["enum"])))
        elif option.get("type") != "null":
            words.append(str(option.get("type", "")))
    return ", ".join(words)
