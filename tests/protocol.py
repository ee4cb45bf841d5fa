"""Compares requests and responses with docs/http-protocol.yaml, an OpenAPI document whose schemas are JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "http-protocol.yaml"
_ROOT = "urn:protocol"


@dataclass
class Exchange:
    """A request, and the response to it: `status` is 0 if there was none. Names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    received: int = 0
    is_cut: bool = False
    status: int = 0
    response_headers: Mapping[str, str] = field(default_factory=dict)
    response: bytes = b""


@cache
def document() -> Any:
    return yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))


@cache
def _registry() -> Registry[Any]:
    return Registry().with_resource(_ROOT, Resource(document(), DRAFT202012))


def problems(exchanges: Iterable[Exchange]) -> list[str]:
    """Where these do not fit the document."""
    return [f"{each.method} {each.target}: {problem}" for each in exchanges for problem in _problems(each)]


def operations() -> set[str]:
    """All operations of the document, as `method path`."""
    return {
        f"{method.upper()} {path}"
        for path, item in document()["paths"].items()
        for method in item
        if method in ("get", "head", "put", "post")
    }


def operation_of(exchange: Exchange) -> str | None:
    """The operation of a request, as `method path`."""
    found = _path_of(exchange)
    return f"{exchange.method} {found[0]}" if found else None


def _problems(exchange: Exchange) -> Iterator[str]:
    found = _path_of(exchange)
    if found is None or exchange.method.lower() not in document()["paths"][found[0]]:
        yield "no such operation"
        return
    path, in_path = found
    item = document()["paths"][path]
    operation = item[exchange.method.lower()]
    query = dict(parse_qsl(exchange.target.partition("?")[2]))
    places = {"path": in_path, "query": query, "header": exchange.headers}
    known = [_resolved(each) for each in (*item.get("parameters", ()), *operation.get("parameters", ()))]
    for each in known:
        name = each["name"].lower() if each["in"] == "header" else each["name"]
        value = places[each["in"]].get(name)
        if value is None:
            if each.get("required"):
                yield f"without {each['name']}"
        else:
            yield from _invalid(_typed(value, each["schema"]), each["schema"], each["name"])
    for name in query.keys() - {each["name"] for each in known if each["in"] == "query"}:
        yield f"with an unknown parameter {name}"
    if not re.fullmatch(r"Bearer .+", exchange.headers.get("authorization", "")) and exchange.status != 401:
        yield "without a token"
    if exchange.is_cut:
        return
    if exchange.body or exchange.status < 400:  # a server may refuse a request before it reads the body
        yield from _content(exchange.body, exchange.headers, operation.get("requestBody", {}), "the request")
    if exchange.status:
        yield from _response(exchange, operation)


def _response(exchange: Exchange, operation: Mapping[str, Any]) -> Iterator[str]:
    declared = operation["responses"]
    found = declared.get(str(exchange.status)) or declared.get("default")
    if found is None or (exchange.status < 300 and str(exchange.status) not in declared):
        yield f"an undeclared status {exchange.status}"
        return
    found = _resolved(found)
    for name, declared_header in found.get("headers", {}).items():
        header = _resolved(declared_header)
        value = exchange.response_headers.get(name.lower())
        if value is None:
            if header.get("required"):
                yield f"a response without {name}"
        else:
            yield from _invalid(_typed(value, header["schema"]), header["schema"], name)
    yield from _content(
        exchange.response, exchange.response_headers, found, f"the response {exchange.status}"
    )


def _content(
    body: bytes, headers: Mapping[str, str], declared: Mapping[str, Any], what: str
) -> Iterator[str]:
    kinds = declared.get("content", {})
    kind = headers.get("content-type", "").partition(";")[0]
    if "application/json" in kinds:
        if kind != "application/json":
            yield f"{what} is {kind or 'of no type'}"
            return
        yield from _invalid(json.loads(body), kinds[kind]["schema"], what)
    elif kinds and kind not in kinds and not what.startswith("the response 2"):
        yield f"{what} is {kind or 'of no type'}"


def _path_of(exchange: Exchange) -> tuple[str, dict[str, str]] | None:
    path = exchange.target.partition("?")[0]
    for each in document()["paths"]:
        pattern = re.escape(each).replace(r"\{run\}", "(?P<run>[^/]+)").replace(r"\{path\}", "(?P<path>.+)")
        if found := re.fullmatch(pattern, path):
            return each, {name: unquote(value) for name, value in found.groupdict().items()}
    return None


def _resolved(found: Mapping[str, Any]) -> Any:
    while "$ref" in found:
        at = document()
        for name in found["$ref"].removeprefix("#/").split("/"):
            at = at[name]
        found = at
    return found


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    return int(value) if _resolved(schema).get("type") == "integer" and value.isdecimal() else value


def _invalid(value: Any, schema: Any, what: str) -> Iterator[str]:
    # References of the document are relative to its root.
    made = jsonschema.Draft202012Validator(_absolute(schema), registry=_registry())
    for error in made.iter_errors(value):
        yield f"{what}: {error.json_path}: {error.message}"


def _absolute(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            name: f"{_ROOT}{each}" if name == "$ref" else _absolute(each) for name, each in schema.items()
        }
    return [_absolute(each) for each in schema] if isinstance(schema, list) else schema
