"""The OpenAPI document of a service, in which errors are problem documents and every response has its request id."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from contracts.problems import MEDIA_TYPE


def install(app: FastAPI) -> None:
    """Let `app` describe itself so."""
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in described["paths"].values():
            for operation in path.values():
                for status, response in operation["responses"].items():
                    _describe(status, response)
        app.openapi_schema = described
    return app.openapi_schema


def _describe(status: str, response: dict[str, Any]) -> None:
    request_id = {"description": "Quote it when you report a fault.", "schema": {"type": "string"}}
    response.setdefault("headers", {})["X-Request-Id"] = request_id
    if int(status) >= 400 and "application/json" in response.get("content", {}):
        response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
    if status == "503":
        wait = {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
        response["headers"]["Retry-After"] = wait
