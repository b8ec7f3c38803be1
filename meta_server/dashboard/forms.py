"""Form fields from the contract's own schema: what a job may say, the form offers, with the same words and limits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.jobs import JobRequest

_SCHEMA = JobRequest.model_json_schema()
_LABELS = {
    "budget.queries": "Images in all",
    "budget.queries_per_api": "Images for each API",
    "budget.cost": "Money in all",
    "budget.seconds": "Seconds of asking",
    "meta_model.backbone": "Network",
    "evaluation.dataset": "Data set",
    "evaluation.split": "Classes",
    "evaluation.queries": "Query images",
    "evaluation.seed": "Seed of the episodes",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One input. `path` is what faults name it by; `kind` is `text`, `integer`, `number`, `boolean` or `choice`."""

    path: str
    label: str
    kind: str
    hint: str
    default: Any
    choices: Sequence[Any]
    least: float | None
    most: float | None
    several: bool  # a comma list


def fields(path: str, *, leave_out: Sequence[str] = ()) -> list[Field]:
    """The plain fields of the object at `path` (`budget`, `method.pqd`), in their order."""
    return [field for field in _fields(path) if field.path.rpartition(".")[2] not in leave_out]


def methods() -> list[str]:
    """Names of the methods a job may use."""
    return list(_variants(_SCHEMA["properties"]["method"]))


def _fields(path: str) -> Iterator[Field]:
    place, _, variant = path.partition(".")
    schema = _object(_SCHEMA["properties"][place], variant)
    for name, told in schema["properties"].items():
        plain = _plain(told)
        if plain is None or "const" in plain:
            continue
        several = plain.get("type") == "array"
        item = _plain(plain["items"]) if several else plain
        if item is None or item.get("type") in ("array", "object"):
            continue
        yield Field(
            path=f"{place}.{name}",
            label=_LABELS.get(f"{place}.{name}", name.replace("_", " ").capitalize()),
            kind="choice" if "enum" in item else {"string": "text"}.get(item["type"], item["type"]),
            hint=told.get("description", ""),
            default=told.get("default"),
            choices=item.get("enum", []),
            least=item.get("minimum", item.get("exclusiveMinimum")),
            most=item.get("maximum", item.get("exclusiveMaximum")),
            several=several,
        )


def _object(told: Mapping[str, Any], variant: str) -> Mapping[str, Any]:
    return _variants(told)[variant] if variant else next(iter(_variants(told).values()))


def _variants(told: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The objects that a value may be, by their `name` where it tells them apart."""
    parts = told.get("oneOf") or told.get("anyOf") or told.get("allOf") or [told]
    found = [_resolved(part) for part in parts if part.get("type") != "null"]
    return {str(each["properties"].get("name", {}).get("const", at)): each for at, each in enumerate(found)}


def _plain(told: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one kind of value beside null; None where there are several, or an object."""
    kinds = [_resolved(part) for part in told.get("anyOf", [told])]
    kinds = [kind for kind in kinds if kind.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 and "type" in kinds[0] else None


def _resolved(told: Mapping[str, Any]) -> Mapping[str, Any]:
    name = told.get("$ref", "").rpartition("/")[2]
    return _SCHEMA["$defs"][name] if name else told
