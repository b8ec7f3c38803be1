"""What the zoo charged against what the jobs hold: the audit after a night of faults.

The zoo's append-only audit stream is taken as the truth. A job's own records are only used to say which images a charge was
for, by the idempotency key that the zoo remembers.
"""

import asyncio
import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors

from benchmarks.chaos.service import Service
from client import Metazoo
from contracts.job_records import Event
from contracts.jobs import MOVES, Job, JobStatus, place_of
from dfml import io
from meta_server.store import keys
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metering import keyring
from metering.ledger import Chunk, Outcome, Settled
from metering.scripts import connect
from worker.queries import plan_of

PAGE = 1000


@dataclass
class Books:
    """Counts of what must not be, in images or jobs, and a sentence for each."""

    lost_answers: int = 0  # charged, and not to be had from the job
    double_charged: int = 0  # images of one API that two charges paid for
    overspent: int = 0  # images beyond a limit, or beyond what the job says it spent
    unconfirmed: int = 0  # images whose outcome was given up; counted as spent
    stuck: int = 0  # jobs that did not end, or whose holds stayed open
    complaints: list[str] = field(default_factory=list)

    def complain(self, job_id: str, what: str) -> None:
        """Note something that must not be."""
        self.complaints.append(f"{job_id}: {what}")

    @property
    def balanced(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.lost_answers + self.double_charged + self.overspent + self.stuck
        return wrong == 0 and not self.complaints


@dataclass(frozen=True)
class Bought:
    """A job, and the zoo's key that it alone used. `models`: the model behind a0, a1, …"""

    job_id: str
    key_id: str
    models: list[str]


def net_charges(service: Service, key_id: str) -> dict[str, tuple[str, int]]:
    """Charge id -> (model, images) of every charge of the key that was not given back."""
    charges: dict[str, tuple[str, int]] = {}
    after: str | None = None
    with httpx.Client(base_url=service.zoo_url, timeout=30, trust_env=False) as zoo:
        while True:
            page = zoo.get(
                f"/admin/keys/{key_id}/audit",
                params={"limit": PAGE, **({"after": after} if after else {})},
                headers={"Authorization": f"Bearer {service.admin_key}"},
            )
            entries = page.raise_for_status().json()
            for entry in entries:
                if entry["kind"] == "charge":
                    if entry["charge"] in charges:
                        raise ValueError(f"the zoo charged {entry['charge']} twice")
                    charges[entry["charge"]] = entry["model"], entry["images"]
                else:
                    del charges[entry["charge"]]
            if len(entries) < PAGE:
                return charges
            after = entries[-1]["id"]


async def check_job(service: Service, metazoo: Metazoo, bought: Bought, heard: list[Event], books: Books) -> None:
    """One job that should have ended. `heard`: its events as a follower got them while things broke."""
    redis: Any = connect(service.redis_url)
    try:
        store = JobStore(redis, secrets=Secrets(service.secret_key))
        stored, ledger = await store.load(bought.job_id), store.ledger(bought.job_id)
        job = await asyncio.to_thread(metazoo.jobs.retrieve, bought.job_id)
        settled, holds = await ledger.settled(), await ledger.open_holds()
        charges = net_charges(service, bought.key_id)
        chunks: list[Settled | Chunk] = [*settled, *(hold.chunk for hold in holds)]
        by_charge = {}
        for one in chunks:
            chunk = one.chunk if isinstance(one, Settled) else one
            mark = keyring.mark(bought.key_id, chunk.key(bought.job_id))
            if charge := await redis.hget(mark, "charge"):
                by_charge[charge.decode()] = one
    finally:
        await redis.aclose()
    assigned = plan_of(stored).assigned
    _check_money(job, bought, charges, books)
    _check_answers(
        Artifacts(service.artifacts),
        bought,
        charges,
        by_charge,
        [list(map(int, indices)) for indices in assigned],
        job.status is JobStatus.SUCCEEDED,
        books,
    )
    books.unconfirmed += job.budget.unconfirmed
    if holds:
        books.stuck += 1
        books.complain(job.id, f"{len(holds)} holds are still open although it is {job.status}")
    told = await asyncio.to_thread(lambda: list(metazoo.jobs.retrieve(bought.job_id).events()))
    for complaint in check_events(job, told, heard, settled):
        books.complain(job.id, complaint)
    if job.meta_model is not None:
        await asyncio.to_thread(_check_model, metazoo, job, sum(images for _, images in charges.values()), books)
    elif job.status is JobStatus.SUCCEEDED:
        books.complain(job.id, "it succeeded without a meta-model")


def _check_money(job: Job, bought: Bought, charges: dict[str, tuple[str, int]], books: Books) -> None:
    counted = Counter[str]()
    for model, images in charges.values():
        counted[model] += images
    budget, zoo = job.budget, counted.total()
    taken = budget.confirmed + budget.unconfirmed + budget.reserved
    over = max(0, zoo - budget.limit, taken - budget.limit, zoo - taken)
    for number, model in enumerate(bought.models):
        spend = budget.per_api.get(f"a{number}")
        own = 0 if spend is None else spend.confirmed + spend.unconfirmed + spend.reserved
        over = max(over, counted[model] - own)
    if over:
        books.overspent += over
        books.complain(job.id, f"the zoo counted {zoo}, the job {taken} of {budget.limit}")
    if budget.reserved == 0 and job.status is JobStatus.SUCCEEDED and budget.confirmed != zoo:
        books.complain(job.id, f"no hold is open, {budget.confirmed} are confirmed and the zoo counted {zoo}")


def _check_answers(
    artifacts: Artifacts,
    bought: Bought,
    charges: dict[str, tuple[str, int]],
    by_charge: dict[str, Settled | Chunk],
    assigned: list[list[int]],
    succeeded: bool,
    books: Books,
) -> None:
    """Every charge bought answers that the job holds, and no image of an API was bought twice."""
    times: defaultdict[str, Counter[int]] = defaultdict(Counter)
    unknown = Counter[str]()
    for charge, (model, images) in charges.items():
        one = by_charge.get(charge)
        if one is None:
            unknown[model] += images
            books.lost_answers += images
            books.complain(bought.job_id, f"no chunk is known to have bought charge {charge} of {images} images")
            continue
        chunk = one.chunk if isinstance(one, Settled) else one
        if (bought.models[place_of(chunk.api)], chunk.images) != (model, images):
            books.complain(bought.job_id, f"{chunk.id} of {chunk.images} images was charged {images} at {model}")
        wanted = assigned[place_of(chunk.api)][chunk.start : chunk.stop]
        times[model].update(wanted)
        given_up = isinstance(one, Settled) and one.outcome is Outcome.UNCONFIRMED and not succeeded
        if not given_up and not (isinstance(one, Settled) and _delivered(artifacts, one, wanted)):
            books.lost_answers += images
            books.complain(bought.job_id, f"the answers of {chunk.id} were paid for and are not there")
    for number, model in enumerate(bought.models):
        again = sum(count - 1 for count in times[model].values())
        double = max(again, times[model].total() + unknown[model] - len(assigned[number]))
        if double > 0:
            books.double_charged += double
            books.complain(bought.job_id, f"{double} images of {model} were paid for twice")


def _delivered(artifacts: Artifacts, one: Settled, indices: list[int]) -> bool:
    if one.outcome is not Outcome.CONFIRMED or one.path is None:
        return False
    try:
        rows = from_safetensors(artifacts.read(one.path))
    except (OSError, SafetensorError):
        return False
    return rows["indices"].tolist() == indices and len(rows["probabilities"]) == len(indices)


def check_events(job: Job, told: list[Event], heard: list[Event], settled: Iterable[Settled]) -> list[str]:
    """What is wrong with a job's events: `told` as they stand now, `heard` as a follower got them."""
    found = []
    places = [tuple(map(int, event.id.split("-"))) for event in told]
    if places != sorted(set(places)):
        found.append("its events are out of order")
    statuses = [JobStatus(event.data["status"]) for event in told if event.type == "status"]
    legal = all(to in MOVES[before] for before, to in pairwise(statuses))
    if not statuses or statuses[0] is not JobStatus.QUEUED or statuses[-1] is not job.status or not legal:
        found.append(f"it is {job.status}, and its events tell {' '.join(statuses)}")
    if job.finished_at is None:
        found.append(f"it is still {job.status}")
    phases = [event.data["phase"] for event in told if event.type == "phase"]
    if len(phases) != len(set(phases)):
        found.append(f"its phases began more than once: {' '.join(phases)}")
    outcomes = Counter((event.data["chunk"], event.data["outcome"]) for event in told if event.type == "budget")
    if outcomes != Counter((one.chunk.id, str(one.outcome)) for one in settled):
        found.append("its budget events are not one for each settled chunk")
    last = [at for at, event in enumerate(told) if event.type == "status" and event.data["status"] == job.status]
    end = last[-1] if last else len(told)
    if [event.id for event in heard] != [event.id for event in told[: end + 1]]:
        found.append(f"a follower heard {len(heard)} events, and {end + 1} were told until its end")
    return found


def _check_model(metazoo: Metazoo, job: Job, charged: int, books: Books) -> None:
    """The published meta-model is whole, loads, and says what it cost."""
    model = metazoo.meta_models.retrieve(str(job.meta_model))
    with tempfile.TemporaryDirectory() as made:
        folder = metazoo.meta_models.download(model.id, Path(made) / "model")
        for line in (folder / io.SUMS).read_text().splitlines():
            digest, name = line.split(maxsplit=1)
            if hashlib.sha256((folder / name.strip().lstrip("*")).read_bytes()).hexdigest() != digest:
                books.complain(job.id, f"{name} of its meta-model is not what SHA256SUMS says")
        try:
            io.load(folder)
        except io.BadModel as error:
            books.complain(job.id, f"its meta-model does not load: {error}")
    if not charged <= model.queries <= charged + job.budget.unconfirmed:
        books.complain(job.id, f"its meta-model says {model.queries} queries, and the zoo counted {charged}")


class Sampler:
    """Looks at running jobs again and again: at no moment may the zoo have counted more than the job holds."""

    def __init__(self, service: Service) -> None:
        self._redis: Any = service.redis()
        self.samples = 0
        self._worst = Counter[str]()  # by job: each image that was too many counts once

    def look(self, bought: Bought, books: Books) -> None:
        """One look; the zoo first, so that what is charged in between is held already. Raises redis's errors."""
        zoo = int(self._redis.hget(keyring.record(bought.key_id), "spent") or 0)
        parts = ("limit", "confirmed", "unconfirmed", "reserved")
        limit, *taken_parts = (int(value or 0) for value in self._redis.hmget(keys.job(bought.job_id, "budget"), parts))
        taken = sum(taken_parts)
        self.samples += 1
        over = max(zoo - taken, taken - limit)
        if over > self._worst[bought.job_id]:
            books.overspent += over - self._worst[bought.job_id]
            self._worst[bought.job_id] = over
            books.complain(bought.job_id, f"while it ran the zoo had counted {zoo}, the job {taken}")
