"""The OpenAPI document: what the routes declare, plus what is true of all of them, such as errors and keys."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERROR = {"description": "What is wrong, in the words of the API that was asked", "content": {"application/json": {}}}


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """The whole document, made anew: its examples name the models that are loaded."""
    names = [served.name for served in app.state.serving.pool.loaded()]
    with warnings.catch_warnings():  # of ids for routes with several methods: they get others below
        warnings.simplefilter("ignore", UserWarning)
        made = get_openapi(title="tuili", version=version, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = {
        name: schema
        for name, schema in components.get("schemas", {}).items()
        if name not in ("HTTPValidationError", "ValidationError")  # FastAPI's answers, which are never given
    }
    for path, item in made["paths"].items():
        for method, operation in item.items():
            operation["operationId"] = "_".join([method, *re.findall(r"\w+", path)])
            _complete(operation, path, schemas, names)
    components["schemas"] = schemas
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return made


def _complete(operation: dict[str, Any], path: str, schemas: dict[str, Any], names: list[str]) -> None:
    """Lifts schemas that bodies share, and adds parameters of the path and the answers any route may give."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        content["schema"] = copy.deepcopy(content["schema"])  # it is the route's
        schemas |= content["schema"].pop("$defs", {})
        if names and "model" in content["schema"].get("properties", {}):
            content["schema"]["properties"]["model"]["examples"] = names
    known = {parameter["name"] for parameter in operation.get("parameters", ())}
    for name in re.findall(r"{(\w+)}", path):
        if name not in known:
            parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            operation.setdefault("parameters", []).append(parameter)
    operation["responses"].pop("422", None)
    operation["responses"] |= {"4XX": _ERROR, "5XX": _ERROR}
    if operation["x-scope"] != "public":
        operation["security"] = [{"key": []}, {}]
