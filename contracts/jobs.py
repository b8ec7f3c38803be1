"""Jobs: what a caller asks for, what the service tells of it, and which moves between states are legal."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from contracts._base import Input, Name, Place, Record, Tag, plain_http, refuse
from contracts.adapters import ClassifyOptions, CustomOptions
from contracts.image_sets import ID as IMAGE_SET
from contracts.meta_models import BackboneConfig, Evaluation, Score
from contracts.methods import MethodOptions, PqdOptions, ProceduralQueries
from contracts.money import Currency, Money, Price
from contracts.webhooks import Webhook

JobName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Notes = Annotated[str, StringConstraints(max_length=4000)]


class JobStatus(StrEnum):
    """Every state of a job."""

    QUEUED = "queued"  # stored and enqueued; no worker has begun
    RUNNING = "running"  # workers hold leases, or the reaper will hand its work on
    PAUSING = "pausing"  # asked to rest; open holds are being drained
    PAUSED = "paused"  # nobody works on it until it is resumed; `reason` says why
    CANCELLING = "cancelling"  # asked to stop; open holds are being resolved
    CANCELLED = "cancelled"  # stopped on request; what was paid for is kept
    SUCCEEDED = "succeeded"  # the meta-model is published
    FAILED = "failed"  # `error` says why and what to do; a retry goes on from where it stood


MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.PAUSING, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.PAUSING: frozenset({JobStatus.PAUSED, JobStatus.CANCELLING, JobStatus.FAILED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.FAILED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
}
"""State -> states it may move to: `paused` returns to the queue when it is resumed, `failed` when it is retried."""

ENDED = frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED})
"""States in which a job rests for good, unless a failed one is retried."""


class Phase(StrEnum):
    """The parts of a job, in order; a job's `phase` is the furthest that has started."""

    PROBE = "probe"
    ACQUIRE = "acquire"
    META_TRAIN = "meta_train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class ApiSpec(Input):
    """One API to learn from: a model of the Open Inference Protocol v2 (`…/v2/models/NAME`), or what another adapter takes."""

    url: Annotated[str, Field(min_length=8, max_length=2048)] = Field(description="The model's URL.")
    adapter: Literal["oip", "classify", "custom"] = Field(
        "oip",
        description="How it is spoken to: the Open Inference Protocol v2, PNG files answered by labels, or JSON as "
        "`custom` says.",
    )
    classify: ClassifyOptions | None = Field(
        None, description="What the adapter `classify` needs to know; with it alone."
    )
    custom: CustomOptions | None = Field(None, description="What the adapter `custom` needs to know; with it alone.")
    access: Literal["predict", "weights"] = Field(
        "predict",
        description="What is taken from it: answers, each of which is a query, or the weights that its host publishes, which "
        "cost none. `weights` goes with methods whose `gradients.source` is `weights`.",
    )
    price_per_1k: Price | None = Field(None, description="What 1,000 images cost, in the budget's currency.")
    api_key: SecretStr | None = Field(None, description="Sent as a bearer key. Encrypted at rest, never returned.")

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        parts = plain_http(url, example="https://host/v2/models/NAME", instead="send the key as api_key")
        if parts.query or parts.fragment:
            raise ValueError("must not hold a query or fragment: give the model's URL alone")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _options_of_the_adapter(self) -> "ApiSpec":
        given = {"classify": self.classify, "custom": self.custom}
        found: list[tuple[Place, str]] = []
        for adapter, options in given.items():
            if self.adapter == adapter and options is None:
                found.append(((adapter,), f"is needed with the adapter {adapter}"))
            if self.adapter != adapter and options is not None:
                found.append(((adapter,), f"goes with the adapter {adapter} alone"))
        if self.adapter != "oip" and self.access == "weights":
            found.append((("access",), "weights goes with the adapter oip alone"))
        refuse("ApiSpec", found)
        return self


class BudgetRaise(Input):
    """A budget's new limits; what is left out stays. A limit is raised, never lowered."""

    queries: int | None = Field(None, ge=1, le=10**9, description="Images over all APIs.")
    queries_per_api: int | None = Field(None, ge=1, description="Images for any one API.")
    cost: Money | None = Field(None, description="Money over all APIs.")
    seconds: float | None = Field(None, gt=0, le=10**8, description="Seconds of work.")


class JobChange(Input):
    """What of a job may be changed; what is left out stays."""

    name: Name | None = Field(None, description="To find it by; null takes it away.")
    tags: list[Tag] | None = Field(None, max_length=32, description="In place of those it has.")
    notes: Notes | None = Field(None, description="In place of those it has.")
    budget: BudgetRaise | None = Field(
        None, description="Counts from when work is next begun: pause a running job, raise its budget, resume it."
    )


class BudgetLimit(Input):
    """The most that may be spent, in images sent to APIs. The probe is inside it."""

    queries: int = Field(ge=1, le=10**9, description="Images over all APIs.")
    queries_per_api: int | None = Field(None, ge=1, description="Images for any one API.")
    cost: Money | None = Field(None, description="Money over all APIs; each of them then needs `price_per_1k`.")
    currency: Currency = Field("USD", description="Of every price and cost of the job, as ISO 4217.")
    seconds: float | None = Field(
        None,
        gt=0,
        le=10**8,
        description="Seconds from when work first began, pauses left out, after which APIs are asked no more.",
    )


class JobRequest(Input):
    """A job: learn from these APIs, within this budget, by this method, into this network."""

    name: Name | None = Field(None, description="To find it by; the meta-model inherits it.")
    tags: list[Tag] = Field(default=[], max_length=32, description="To group jobs by.")
    notes: Notes = Field("", description="For people.")
    apis: list[ApiSpec] = Field(min_length=1, max_length=1000, description="The APIs to learn from, each listed once.")
    method: MethodOptions = Field(PqdOptions(), description="How to learn, and its options.")
    budget: BudgetLimit = Field(description="What may be spent.")
    min_apis: int | None = Field(
        None,
        ge=1,
        description="Ask this many APIs at least, and go on while so many answer. Default: half of those asked, at least one.",
    )
    acquire_deadline: float | None = Field(
        None,
        gt=0,
        le=30 * 86400,
        description="Seconds after which APIs are asked no more; what they gave by then is learned from. Default: none.",
    )
    meta_model: BackboneConfig = Field(BackboneConfig(), description="The network to train.")
    image_size: int | None = Field(
        None,
        ge=16,
        le=512,
        description="Pixels a side of the query images and of what the meta-model takes; an API that takes another size gets "
        "them resized. Default: the size of the API that tells its own first.",
    )
    unlabeled: str | None = Field(
        None,
        pattern=f"^{IMAGE_SET}$",
        description="Id of an image set: its images are asked about, resized to each API's input, in place of images made from "
        "the seed. As many as the budget allows, drawn by the seed; where they are fewer, each goes to more APIs.",
    )
    reuse: list[JobName] = Field(
        default=[],
        max_length=32,
        description="Ids of jobs that have ended. What their APIs answered is learned from too; about an image that the same "
        "API answered there, of the same seed and size, it is not asked again.",
    )
    evaluation: Evaluation | None = Field(None, description="Few-shot accuracy to measure at the end; null for none.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to learn: `cuda` waits for a learner with a GPU; `auto` takes what its learner has."
    )
    webhook: Webhook | None = Field(None, description="Where to tell what becomes of the job; null for nowhere.")
    seed: int = Field(
        0, ge=0, lt=2**31, description="The same request with the same answers gives the same meta-model."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "JobRequest":
        urls = [api.url for api in self.apis]
        found: list[tuple[Place, str]] = []
        for index, url in enumerate(urls):
            if (first := urls.index(url)) < index:
                found.append((("apis", index, "url"), f"is the same as apis.{first}.url: list each API once"))
        if self.min_apis is not None and self.min_apis > len(urls):
            found.append((("min_apis",), f"{self.min_apis} is more than the {len(urls)} APIs given"))
        if self.budget.queries < len(urls):
            message = f"{self.budget.queries} is less than one image for each of {len(urls)} APIs"
            found.append((("budget", "queries"), message))
        if self.unlabeled is not None and not isinstance(self.method, ProceduralQueries):
            message = f"{self.method.name} makes its images as it goes: leave it out, or choose pqd or distill_average"
            found.append((("unlabeled",), message))
        if self.reuse and not isinstance(self.method, ProceduralQueries):
            message = f"{self.method.name} asks as it goes: leave it out, or choose pqd or distill_average"
            found.append((("reuse",), message))
        found += [
            (("reuse", index), "is listed before: list each job once")
            for index, name in enumerate(self.reuse)
            if self.reuse.index(name) < index
        ]
        if self.budget.cost is not None:
            unpriced = [index for index, api in enumerate(self.apis) if api.price_per_1k is None]
            found += [(("apis", index, "price_per_1k"), "is required with budget.cost") for index in unpriced]
        refuse("JobRequest", found + _access_faults(self))
        return self

    @property
    def api_ids(self) -> list[str]:
        """The name of each API within the job: `a0`, `a1`, …"""
        return [f"a{place}" for place in range(len(self.apis))]

    @property
    def takes_weights(self) -> bool:
        """Whether its method learns from published weights, and asks no API anything."""
        gradients = getattr(self.method, "gradients", None)
        return gradients is not None and gradients.source == "weights"

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Of the query images, where the request says it."""
        return None if self.image_size is None else (3, self.image_size, self.image_size)

    def least_apis(self, asked: int) -> int:
        """APIs without which the job cannot go on, of so many that are asked."""
        return self.min_apis if self.min_apis is not None else max(1, asked // 2)

    def asks(self, api: "ApiProgress") -> bool:
        """Whether the API is asked anything.

        With few queries nothing is planned for most, which are done at once, nor for one that another stands in for.
        """
        ended = api.state in ("done", "dropped")
        return api.planned > 0 or not ended or not isinstance(self.method, ProceduralQueries)


def place_of(api_id: str) -> int:
    """The place in a request of the API that it names so."""
    return int(api_id.removeprefix("a"))


def _access_faults(request: JobRequest) -> list[tuple[Place, str]]:
    """Where an API gives something else than the method takes."""
    if not request.takes_weights:
        message = (
            f"{request.method.name}, as asked for, takes answers: set it to predict, or choose a method whose "
            "gradients.source is weights"
        )
        found: list[tuple[Place, str]] = [
            (("apis", index, "access"), message) for index, api in enumerate(request.apis) if api.access == "weights"
        ]
        if getattr(request.method, "start", None) == "average":
            found.append((("method", "start"), "average is of weights: set gradients.source to weights too"))
        return found
    closed = [f"apis.{index}.access" for index, api in enumerate(request.apis) if api.access == "predict"]
    if not closed:
        return []
    named = ", ".join(closed[:3]) + (f" and {len(closed) - 3} more" if len(closed) > 3 else "")
    message = (
        f"takes weights, and {named} is predict: set it to weights where the host publishes them, or choose zeroth-order, "
        "surrogate or guided, which take answers alone and spend queries, or another method"
    )
    return [(("method", "gradients", "source"), message)]


class CostState(Record):
    """What a job cost, as decimal strings of one currency. Each chunk's cost is rounded up to a millionth of the unit."""

    currency: str = Field(description="ISO 4217.")
    limit: str | None = Field(description="The most that may be spent; null for no limit.")
    confirmed: str = Field(description="For answers that are stored.")
    unconfirmed: str = Field(description="For images sent whose outcome is unknown for good.")
    reserved: str = Field(description="Held for requests that are under way.")
    left: str | None = Field(description="What may still be reserved; null for no limit.")


class BudgetState(Record):
    """Where a budget stands, in images: `confirmed + unconfirmed + reserved + left == limit`."""

    limit: int = Field(description="The most that may be spent.")
    confirmed: int = Field(description="Answered, and the answer is stored.")
    unconfirmed: int = Field(
        description="Sent, outcome unknown for good: counted as spent, never sent again by itself."
    )
    reserved: int = Field(description="Held for requests that are under way.")
    left: int = Field(description="What may still be reserved.")
    per_api: dict[str, "ApiSpend"] = Field(
        default={}, description="By API id (`a0`, `a1`, … in the order of the request)."
    )
    cost: CostState | None = Field(None, description="In money; null when no API has a price.")


class ApiSpend(Record):
    """One API's part of the budget, in images."""

    confirmed: int = Field(0, description="Answered, and the answer is stored.")
    unconfirmed: int = Field(0, description="Sent, outcome unknown for good.")
    reserved: int = Field(0, description="Held for requests that are under way.")


class ApiProgress(Record):
    """One API's part of the job."""

    url: str = Field(description="As in the request.")
    state: Literal["waiting", "probing", "acquiring", "done", "dropped"] = Field(
        "waiting", description="Where its part of the job stands; a dropped API is asked no more."
    )
    answered: int = Field(0, description="Images answered and stored.")
    planned: int = Field(0, description="Images planned for this API.")
    reason: str | None = Field(None, description="Why it was dropped; null otherwise.")
    stands_in_for: str | None = Field(
        None,
        description="Id of the API, dropped before it answered anything, whose images this one is asked about instead.",
    )


class Progress(Record):
    """How far each phase is, in [0, 1], and how far each API is."""

    phase: dict[Phase, float] = Field(default={}, description="By phase that has started.")
    per_api: dict[str, ApiProgress] = Field(default={}, description="By API id.")


class JobError(Record):
    """Why a job failed: a stable code, a sentence that says what to do next, and the field at fault if there is one."""

    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="For people: what to do next.")
    param: str | None = Field(None, description="Dotted path of the field at fault, if there is one.")


class Job(Record):
    """A job as the service tells it."""

    id: str = Field(description="Ids sort by time.")
    name: str | None = Field(description="As in the request.")
    tags: list[str] = Field(description="As in the request.")
    notes: str = Field("", description="As in the request.")
    status: JobStatus = Field(description="Where the job stands.")
    reason: str | None = Field(
        None, description="Why it is in this state, such as why it was paused; null where that is plain."
    )
    phase: Phase | None = Field(None, description="The furthest phase that has started; null while queued.")
    created_at: datetime = Field(description="When it was stored.")
    started_at: datetime | None = Field(None, description="When a worker first began; null until then.")
    finished_at: datetime | None = Field(None, description="When it ended; null until then.")
    attempt: int = Field(0, description="How often work on it was begun since its last durable progress.")
    progress: Progress = Field(Progress(), description="How far each phase and each API is.")
    budget: BudgetState = Field(description="What was spent and what is left.")
    seconds: dict[Phase, float] = Field(default={}, description="Wall time of each finished phase.")
    metrics: dict[str, float] = Field(default={}, description="The newest value of each training metric.")
    score: Score | None = Field(None, description="Null until evaluated, or when no evaluation was asked for.")
    random_score: Score | None = Field(
        None, description="The same network untrained, mean of three seeds, on the same episodes; null until evaluated."
    )
    error: JobError | None = Field(None, description="Why it failed; null otherwise.")
    meta_model: str | None = Field(None, description="Id of the published meta-model; null until then.")
    request: JobRequest = Field(description="The request; API keys are masked.")

    def told_state(self, api: ApiProgress) -> str:
        """The API's state for people: one that nothing was planned for is done, but was not asked."""
        return "not asked" if api.state == "done" and not self.request.asks(api) else api.state

    def replaced(self, api: ApiProgress) -> ApiProgress | None:
        """The API that this one stands in for."""
        return None if api.stands_in_for is None else self.progress.per_api[api.stands_in_for]


class JobPage(Record):
    """A page of jobs, newest first; pass `next` as `after` for the following page."""

    items: list[Job] = Field(description="The jobs.")
    next: str | None = Field(description="Cursor of the following page; null on the last.")
