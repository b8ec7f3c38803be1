"""The zoo: its manifest on disk, a model's metadata on the wire, keys and what they have used."""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from contracts._base import Input, Name, Record, refuse

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

ResponsePolicy = Annotated[str, StringConstraints(pattern=r"^(probabilities|label|topk:[1-9][0-9]{0,3}|round:[1-6])$")]
"""What an answer tells of the probabilities: all of them, which class is the likeliest, the k largest, or d decimals."""

_POLICY: TypeAdapter[str] = TypeAdapter(ResponsePolicy)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def parse_policy(policy: str) -> tuple[str, int]:
    """The kind of a response policy and its number, 0 where it has none. Raises `ValueError` naming what there is."""
    try:
        _POLICY.validate_python(policy)
    except ValidationError:
        raise ValueError(
            f"{policy!r} is no response policy: probabilities, topk:K, round:1 to round:6, label"
        ) from None
    kind, _, number = policy.partition(":")
    return kind, int(number or 0)


class Normalisation(Record):
    """What a teacher subtracts and divides by, per channel, after scaling to [0, 1]."""

    mean: tuple[float, float, float] = Field(description="Subtracted.")
    std: tuple[Positive, Positive, Positive] = Field(description="Divided by, then.")


Side = Annotated[int, Field(ge=1, le=1024)]

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
"""Of files that are whole programs; the others are `.safetensors`, weights of a network that we know."""


class Network(Record):
    """What a teacher's file holds, and what images become before it sees them."""

    backbone: Literal["conv4", "resnet10", "resnet18", "onnx", "torch-export"] = Field(
        "conv4", description="Its architecture, or the format of a file that brings its own."
    )
    width: int = Field(32, ge=1, le=512, description="Channels of the first block; nothing in other formats.")
    conv_bias: bool = Field(False, description="Conv4 with a bias before each batch norm.")
    input: tuple[Literal[3], Side, Side] = Field((3, 32, 32), description="(channels, height, width).")
    normalise: Normalisation = Field(description="What images become first.")
    answers: Literal["logits", "probabilities"] = Field("logits", description="What the file computes.")

    @property
    def suffix(self) -> str:
        """Of its file."""
        return SUFFIXES.get(self.backbone, ".safetensors")


Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, le=60_000, allow_inf_nan=False)]
Price = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$")]


class Behaviour(Record):
    """How a hosted model differs from one that answers at once and never fails: for rehearsals and tests.

    Which requests are hit is drawn from `seed` and the model's name, in the order in which requests are computed.
    """

    latency: Milliseconds = Field(0, description="Milliseconds added to each answer.")
    jitter: Milliseconds = Field(0, description="Up to so many milliseconds more or less than `latency`.")
    errors: Rate = Field(0, description="Share of requests that end in a 500; nothing is charged for them.")
    stalls: Rate = Field(0, description="Share of requests that are answered `stall` seconds late.")
    stall: float = Field(5.0, ge=0, le=3600, description="Seconds of a stall.")
    shapes: Rate = Field(0, description="Share of answers that lack their last row; they are charged.")
    nans: Rate = Field(0, description="Share of answers whose first row is NaN (a 500 in JSON); they are charged.")
    seed: int = Field(0, description="The same seed hits the same requests.")


def parse_serving(text: str) -> tuple[str | None, Behaviour | None]:
    """A response policy and a behaviour from `label`, `latency=50,jitter=20`, or both: `label,latency=50,errors=0.1`.

    None stands for what is not told. Raises `ValueError` naming what there is.
    """
    policy, told = None, {}
    for part in text.split(","):
        name, given, value = part.strip().partition("=")
        if given and name in Behaviour.model_fields and name not in told:
            told[name] = value
        elif not given and policy is None:
            parse_policy(name)
            policy = name
        else:
            known = ", ".join(f"{field}=" for field in Behaviour.model_fields)
            raise ValueError(f"{part!r} is neither a response policy nor one of {known} given once")
    try:
        return policy, Behaviour.model_validate(told) if told else None
    except ValidationError as error:
        raise ValueError("; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())) from None


class TeacherEntry(Record):
    """One teacher of a zoo folder. What it leaves null is as the manifest says."""

    file: str
    classes: list[str] = Field(min_length=2)
    held_out_accuracy: float | None = Field(None, description="Fraction in [0, 1] on images kept from training.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    seed: int | None = Field(None, description="Of its training.")
    seconds: float | None = Field(None, description="Training time.")
    dataset: str | None = Field(None, description="Where its classes are from.")
    network: Network | None = None
    origin: str | None = Field(None, description="Where an imported file came from.")
    response_policy: ResponsePolicy = Field("probabilities", description="What its answers tell.")
    eight_bit_only: bool = Field(False, description="Takes UINT8 images alone.")
    behaviour: Behaviour = Field(Behaviour(), description="Latency and faults on purpose.")
    price_per_1k: Price | None = Field(None, description="What 1,000 images cost, as a decimal string.")
    currency: str | None = Field(None, pattern=r"^[A-Z]{3}$", description="ISO 4217, of the price.")
    publish: Literal["weights"] | None = Field(None, description="`weights`: keys may download the file.")


class Manifest(Network):
    """`manifest.json` of a zoo folder: its teachers, a file each, and what they share."""

    dataset: str
    split: str = "train"
    seed: int | None = None
    training: str = ""
    teachers: list[TeacherEntry] = Field(min_length=1)

    def network_of(self, entry: TeacherEntry) -> Network:
        """The entry's own network, or the one that all share."""
        return entry.network or Network.model_validate(self.model_dump(include=set(Network.model_fields)))

    def model_name(self, entry: TeacherEntry) -> str:
        """What the teacher is hosted as: `{data set}-{file without its suffix}`."""
        dataset = (entry.dataset or self.dataset).replace(":", "-")
        return f"{dataset}-{entry.file.rpartition('.')[0]}"


class TensorMetadata(Record):
    """A tensor in a model's metadata; -1 stands for any number of images."""

    name: str = Field(description="What requests and answers call it.")
    datatype: str = Field(description="`UINT8` or `FP32`.")
    shape: list[int] = Field(description="Its sizes; -1 for the number of images.")


class PublishedWeights(Record):
    """Weights that `GET /v1/models/{model}/weights` answers with, and the network that they are of."""

    sha256: str = Field(description="Of the file, in hexadecimal.")
    network: Network = Field(description="Architecture, input and normalisation.")


class ModelParameters(Record):
    """What the Open Inference Protocol has no field for."""

    response_policy: ResponsePolicy = Field(
        "probabilities",
        description="What an answer tells: `probabilities`; `topk:k`, the k largest, the others 0; `round:d`, rounded half "
        "up to d decimals; `label`, 1 for the likeliest class, the others 0.",
    )
    labels: list[str] = Field([], description="The classes, in the order of the probabilities.")
    max_images: int = Field(description="Most images in one request.")
    idempotency: bool = Field(True, description="`Idempotency-Key` on infer is honoured for 24 hours.")
    input_range: tuple[float, float] = Field((0.0, 1.0), description="Of FP32 pixels; UINT8 pixels are 0 to 255.")
    datatypes: list[str] = Field([], description="What the input takes; its metadata names the cheapest on the wire.")
    latency_ms: float = Field(0, description="Added to each answer on purpose.")
    jitter_ms: float = Field(0, description="Up to so much more or less than that.")
    price_per_1k: str | None = Field(None, description="What 1,000 images cost, a decimal string. Null: not stated.")
    currency: str | None = Field(None, description="ISO 4217, of the price.")
    weights: PublishedWeights | None = Field(None, description="Null: a black box.")


class ModelMetadata(Record):
    """`GET /v2/models/{model}`."""

    name: str = Field(description="As in its path.")
    versions: list[str] = Field(["1"], description="Always the one.")
    platform: str = Field("metazoo", description="Always `metazoo`.")
    inputs: list[TensorMetadata] = Field(description="The one tensor that it takes.")
    outputs: list[TensorMetadata] = Field(description="The one tensor that it gives.")
    parameters: ModelParameters = Field(description="What the protocol has no field for.")


class ServerMetadata(Record):
    """`GET /v2`."""

    name: str = Field(description="Always `metazoo`.")
    version: str = Field(description="Version of Metazoo.")
    extensions: list[str] = Field(description="Extensions of the protocol that are spoken.")


LARGEST_BUDGET = 10**12  # images


class KeyRequest(Input):
    """A new key: how much it may ask in all, how fast, and which models."""

    name: Name = "key"
    budget: int | None = Field(None, ge=0, le=LARGEST_BUDGET, description="Images over the key's life. Null: no limit.")
    images_per_second: float | None = Field(None, gt=0, le=1e9, description="Sustained rate. Null: no limit.")
    burst: int | None = Field(
        None, ge=1, le=10**9, description="Most images at once. Null: one second's worth, at least one full request."
    )
    requests_per_second: float | None = Field(
        None, gt=0, le=1e9, description="Sustained rate of requests, one second's worth at once. Null: no limit."
    )
    concurrency: int | None = Field(None, ge=1, le=10_000, description="Most requests at once. Null: no limit.")
    models: list[ModelName] | None = Field(None, max_length=10_000, description="Null: every model.")
    expires_at: AwareDatetime | None = Field(None, description="The key grants nothing from then on. Null: never.")
    notes: str = Field("", max_length=2000, description="For the host; shown to nobody without the admin key.")

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> "KeyRequest":
        if self.burst is not None and self.images_per_second is None:
            refuse("KeyRequest", [(("burst",), "has no meaning without images_per_second: give both, or neither")])
        return self


class TopUp(Input):
    """More images for a key. A call that is repeated tops up again."""

    images: int = Field(ge=1, le=LARGEST_BUDGET, description="Added to the budget.")


class Key(Record):
    """A key as the zoo tells it; the secret is shown once, when it is made."""

    id: str
    name: str
    created_at: datetime
    budget: int | None
    spent: int
    images_per_second: float | None
    burst: int | None
    requests_per_second: float | None = None
    concurrency: int | None = None
    models: list[str] | None
    revoked: bool
    expires_at: datetime | None = None
    notes: str = ""


class NewKey(Key):
    """A key just made, with its secret: `mz_<id>_<secret>`."""

    secret: str


class Usage(Record):
    """What a key has been charged, in images."""

    key: str
    budget: int | None
    spent: int
    left: int | None
    per_model: dict[str, int]
    per_day: dict[date, dict[str, int]] = Field({}, description="By day (UTC, of the charge) and model.")


class AuditEntry(Record):
    """One line of a key's audit stream, which is only ever appended to."""

    id: str = Field(description="Place in the stream; pass the last one as `after` for what follows.")
    kind: Literal["charge", "refund", "top-up", "revoke"]
    images: int = Field(description="Charged, given back, or added to the budget; 0 when the key was revoked.")
    time: datetime
    charge: str | None = Field(None, description="A refund carries the id of the charge that it gives back.")
    model: str | None = Field(None, description="Of charges and refunds.")
