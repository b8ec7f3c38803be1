"""Form fields from a contract's own schema: what a request may say, the form offers, with the same words and limits."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from contracts.jobs import ApiSpec, JobRequest
from contracts.zoo import KeyRequest

Schema = Mapping[str, Any]

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
    "min_apis": "Least APIs",
    "reuse": "Answers of earlier jobs",
    "acquire_deadline": "Seconds for answers",
    "image_size": "Size of the images",
    "webhook.url": "Address",
    "webhook.secret": "Secret",
}
_KEY_LABELS = {
    "budget": "Images in all",
    "images_per_second": "Images a second",
    "burst": "Images at once",
    "requests_per_second": "Requests a second",
    "concurrency": "Requests at once",
    "expires_at": "Ends",
}
_API_LABELS = {
    "classify.size": "Pixels a side",
    "classify.field": "Name of the form field",
    "classify.max_images": "Files a request",
    "classify.top": "Labels it answers",
    "classify.idempotency": "Repeats an answer without a charge",
    "custom.template": "Body of a request",
    "custom.item": "One image in the list",
    "custom.encoding": "Images become",
    "custom.layout": "Order of nested lists",
    "custom.size": "Pixels a side",
    "custom.scores": "Where the scores are",
    "custom.labels_at": "Where the labels are",
    "custom.classes": "Number of classes",
    "custom.top": "Labels it answers",
    "custom.max_images": "Images a request",
    "custom.headers": "Headers",
    "custom.key_header": "Header of the key",
    "custom.idempotency": "Repeats an answer without a charge",
}
_LINES = {"classify.labels", "custom.labels"}  # of any words, commas too
_KINDS = {"date-time": "moment", "password": "secret"}  # of texts, by their format


@dataclass(frozen=True, slots=True)
class Field:
    """One input. `path` is what faults name it by.

    `kind` is `text`, `line`, `secret`, `moment`, `integer`, `number`, `boolean`, `choice`, `pairs` (of texts) or `json`.
    """

    path: str
    label: str
    kind: str
    hint: str
    default: Any
    choices: Sequence[Any]
    least: float | None
    most: float | None
    several: bool  # a comma list, or of `line` one a line
    nullable: bool  # an empty input says null, which is something else than the default


class Form:
    """The fields of one contract; `labels` names those whose own name would not do."""

    def __init__(self, contract: type[BaseModel], labels: Mapping[str, str]) -> None:
        self._schema = contract.model_json_schema()
        self._labels = labels

    def fields(self, place: str = "", variant: str = "", *, only: Collection[str] = ()) -> list[Field]:
        """Fields of the object at `place` (a field of the contract, or all of it), in their order.

        `variant` is the name of the one that is meant where the object may be one of several. Objects within it give theirs.
        """
        told = self._schema["properties"][place] if place else self._schema
        found = self._fields(self._variants(told)[variant] if variant else self._object(told), place)
        return [field for field in found if not only or field.path.rpartition(".")[2] in only]

    def variants(self, place: str) -> list[str]:
        """Names of what the object at `place` may be."""
        return list(self._variants(self._schema["properties"][place]))

    def _fields(self, schema: Schema, prefix: str) -> Iterator[Field]:
        for name, told in schema["properties"].items():
            path = f"{prefix}.{name}" if prefix else name
            plain = self._plain(told)
            if plain is None or "const" in plain:
                continue
            if "properties" in plain:
                if prefix:
                    yield from self._fields(plain, path)
            elif "propertyNames" in plain:
                yield from self._shares(plain, told, path)
            elif plain.get("type") != "array":
                yield self._field(plain, told, path, several=False)
            elif (item := self._plain(plain["items"])) is not None and item.get("type") not in ("array", "object"):
                yield self._field(item, told, path, several=True)

    def _shares(self, plain: Schema, told: Schema, path: str) -> Iterator[Field]:
        """A number for each of a closed set of names."""
        for name in self._resolved(plain["propertyNames"]).get("enum", []):
            default = (told.get("default") or {}).get(name)
            yield self._field(
                plain["additionalProperties"], {**told, "default": default}, f"{path}.{name}", several=False
            )

    def _field(self, item: Schema, told: Schema, path: str, *, several: bool) -> Field:
        words = ": ".join(path.split(".")[1:] or [path]).replace("_", " ").capitalize()
        if item["type"] == "object":
            item = {**item, "type": "pairs"}
        elif path in _LINES:
            item = {**item, "type": "line"}
        kind: str = _KINDS.get(item.get("format", ""), "text") if item["type"] == "string" else item["type"]
        return Field(
            path=path,
            label=self._labels.get(path, words),
            kind="choice" if "enum" in item else kind,
            hint=told.get("description", "").replace("Null:", "Empty:"),
            default=told.get("default"),
            choices=item.get("enum", []),
            least=item.get("minimum", item.get("exclusiveMinimum")),
            most=item.get("maximum", item.get("exclusiveMaximum")),
            several=several,
            nullable=told.get("default") is not None and {"type": "null"} in told.get("anyOf", []),
        )

    def _object(self, told: Schema) -> Schema:
        return next(iter(self._variants(told).values()))

    def _variants(self, told: Schema) -> dict[str, Schema]:
        """The objects that a value may be, by their `name` where it tells them apart."""
        parts = told.get("oneOf") or told.get("anyOf") or told.get("allOf") or [told]
        found = [self._resolved(part) for part in parts if part.get("type") != "null"]
        return {str(each["properties"].get("name", {}).get("const", at)): each for at, each in enumerate(found)}

    def _plain(self, told: Schema) -> Schema | None:
        """The one kind of value beside null, `json` where it may be any; None where there are several."""
        kinds = [self._resolved(part) for part in told.get("anyOf", [told])]
        kinds = [kind for kind in kinds if kind.get("type") != "null"]
        if kinds == [{}]:
            return {"type": "json"}
        return kinds[0] if len(kinds) == 1 and "type" in kinds[0] else None

    def _resolved(self, told: Schema) -> Schema:
        name = told.get("$ref", "").rpartition("/")[2]
        resolved: Schema = self._schema["$defs"][name] if name else told
        return resolved


JOB = Form(JobRequest, _LABELS)
API = Form(ApiSpec, _API_LABELS)


@dataclass(frozen=True, slots=True)
class Adapter:
    """How an API that does not speak the Open Inference Protocol is described: what it needs to have said, and the rest."""

    title: str
    first: Sequence[Field]
    more: Sequence[Field]


def _adapter(name: str, title: str, first: Collection[str]) -> Adapter:
    needed = API.fields(name, only=first)
    return Adapter(title, needed, [field for field in API.fields(name) if field not in needed])


ADAPTERS = {
    "classify": _adapter("classify", "What it takes and tells", ("labels", "size", "max_images")),
    "custom": _adapter(
        "custom",
        "How it is asked, and where its answer holds the scores",
        ("template", "encoding", "size", "scores", "classes", "labels", "max_images"),
    ),
}
EXAMPLES = {
    "classify.labels": "cat\ndog",
    "classify.size": "224",
    "custom.template": '{"inputs": "{{image}}"}',
    "custom.size": "224",
    "custom.scores": "/predictions/*/score",
    "custom.labels_at": "/predictions/*/label",
    "custom.labels": "cat\ndog",
    "custom.classes": "10",
    "custom.headers": "X-Model: flowers",
    "custom.key_header": "Authorization, as a bearer key",
}
"""What an empty field of an adapter shows."""
ZOO_KEY = Form(KeyRequest, _KEY_LABELS)
