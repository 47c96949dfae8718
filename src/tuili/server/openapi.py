"""The OpenAPI document: what the routes declare, plus what is true of all of them, such as errors and keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERROR = {"description": "What is wrong, in the words of the API that was asked", "content": {"application/json": {}}}


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """The whole document, made anew."""
    made = get_openapi(title="tuili", version=version, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = {
        name: schema
        for name, schema in components.get("schemas", {}).items()
        if name not in ("HTTPValidationError", "ValidationError")  # FastAPI's answers, which are never given
    }
    for path in made["paths"].values():
        for operation in path.values():
            _complete(operation, schemas)
    components["schemas"] = schemas
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return made


def _complete(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Lifts schemas that bodies share, and adds the answers any route may give."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schemas |= content["schema"].pop("$defs", {})
    operation["responses"].pop("422", None)
    operation["responses"] |= {"4XX": _ERROR, "5XX": _ERROR}
    if operation["x-scope"] != "public":
        operation["security"] = [{"key": []}, {}]
