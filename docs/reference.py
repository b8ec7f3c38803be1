"""Writes docs/rest.md, the REST reference, from the OpenAPI documents of both services.

    .venv/bin/python docs/reference.py

A test compares the page with what this makes of the code as it is.
"""

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "rest.md"
INTRO = """# REST reference

Made from the services' own OpenAPI documents by `docs/reference.py`; the running services show the same at `/docs` and
`/openapi.json`. Errors are `application/problem+json` (RFC 9457): `type` is stable, `detail` says what to do, `errors` lists
every fault by field, and `error` repeats it all in one line for clients of the Open Inference Protocol.

Send keys as `Authorization: Bearer KEY`.
"""


def reference(services: dict[str, dict[str, Any]]) -> str:
    """The page for a map of title -> OpenAPI document."""
    return "\n".join([INTRO, *(line for title, document in services.items() for line in _service(title, document))])


def _service(title: str, document: dict[str, Any]) -> list[str]:
    lines = [f"## {title}", ""]
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            lines += [f"### `{verb.upper()} {path}`", "", operation.get("summary", "") + ".", ""]
            if text := operation.get("description"):
                lines += [text.strip(), ""]
            lines += _parameters(operation.get("parameters", []))
            if body := operation.get("requestBody"):
                kinds = ", ".join(
                    f"`{kind}` {_type(content.get('schema', {}))}" for kind, content in body["content"].items()
                )
                lines += [f"Body: {kinds}", ""]
            lines += _responses(operation["responses"])
    lines += ["### Schemas", ""]
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        lines += _schema(name, schema)
    return lines


def _parameters(parameters: list[dict[str, Any]]) -> list[str]:
    if not parameters:
        return []
    rows = []
    for parameter in parameters:
        text = _cell(parameter.get("description", ""))
        rows.append(f"| `{parameter['name']}` | {parameter['in']} | {_type(parameter['schema'])} | {text} |")
    return ["| parameter | in | type | |", "|---|---|---|---|", *rows, ""]


def _responses(responses: dict[str, Any]) -> list[str]:
    rows = []
    for status, response in responses.items():
        kinds = ", ".join(_type(content.get("schema", {})) for content in response.get("content", {}).values())
        rows.append(f"| {status} | {kinds} | {_cell(response.get('description', ''))} |")
    return ["| status | body | |", "|---|---|---|", *rows, ""]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"#### {name}", ""]
    if text := schema.get("description"):
        lines += [text.strip(), ""]
    if "enum" in schema:
        return [*lines, "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".", ""]
    required = set(schema.get("required", []))
    rows = []
    for field, part in schema.get("properties", {}).items():
        text = _cell(part.get("description", ""))
        rows.append(f"| `{field}`{' *' if field in required else ''} | {_type(part)} | {_default(part)} | {text} |")
    if rows:
        lines += ["| field (* required) | type | default | |", "|---|---|---|---|", *rows, ""]
    return lines


def _type(schema: dict[str, Any]) -> str:
    if reference := schema.get("$ref"):
        return str(reference.rsplit("/", 1)[1])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key])
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    kind = str(schema.get("type", "any"))
    return kind + "".join(f" {sign} {schema[name]}" for name, sign in LIMITS.items() if name in schema)


LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _default(schema: dict[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def current() -> str:
    """The page for the code as it is."""
    from api_zoo.app import create_app as create_zoo
    from api_zoo.settings import Settings as ZooSettings
    from meta_server.app import create_app as create_server
    from meta_server.settings import Settings as ServerSettings

    redis = "redis://nothing.is.connected.to"
    secret = "0" * 16
    server = create_server(ServerSettings(redis_url=redis, artifacts=".", secret_key=secret, api_key=secret))
    zoo = create_zoo(ZooSettings(redis_url=redis, admin_key=secret))
    return reference({"Meta server": server.openapi(), "API zoo": zoo.openapi()})


if __name__ == "__main__":
    PAGE.write_text(current())
