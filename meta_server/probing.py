"""A probe at submit time: a worker asks each API about a few images; the server waits for what came of it, and asks nobody."""

import time

import anyio
from anyio import to_thread
from kombu.exceptions import OperationalError

from contracts import money
from contracts.estimates import ApiProbe, Estimate, EstimateRequest, Probe
from contracts.problems import ProblemError
from meta_server.services import Services
from meta_server.store.probes import Asked

ASKING = 20.0  # seconds that a worker has from when the probe was sent
WAIT = 25.0  # seconds that a caller waits
LOOK_EVERY = 0.1
BATCH = 64  # images a request to an API that states no limit, as the worker sends them


async def probed(services: Services, request: EstimateRequest, *, tenant: str) -> Probe:
    """What the APIs show. Raises `ProblemError` (`unavailable` when no worker told in time), `StoreUnavailable`."""
    images = dict(zip(request.api_ids, _images(request), strict=True))
    most = sum(images.values())
    counter = await services.probes.count(tenant, most)
    used = 0
    try:
        probe_id = await services.probes.create(Asked(request=request, images=images, until=time.time() + ASKING))
        used = most  # until more is known, also when the caller goes away
        try:
            await to_thread.run_sync(services.queue.probe, probe_id)
        except OperationalError:
            used = most if await services.probes.withdraw(probe_id) else 0
            raise ProblemError("unavailable", "the queue is not reachable; nothing was asked: try again") from None
        with anyio.move_on_after(WAIT):
            while (probe := await services.probes.result(probe_id)) is None:  # noqa: ASYNC110 - it comes through Redis
                await anyio.sleep(LOOK_EVERY)
            used = probe.charged + probe.unconfirmed
            return probe
        if not await services.probes.withdraw(probe_id):
            used = 0
            raise ProblemError("unavailable", "no worker took the probe; nothing was asked: is one running, and free?")
        detail = f"the probe did not end within {WAIT:.0f} s: up to {most} images may have been charged"
        raise ProblemError("unavailable", detail, charged_at_most=most)
    finally:
        if used < most:
            await services.probes.uncount(counter, most - used)


def _images(request: EstimateRequest) -> list[int]:
    """The most images that each API is asked about: within the budget, in images and in money."""
    budget, apis = request.budget, len(request.apis)
    each = min(request.probe_images, budget.queries // apis, budget.queries_per_api or budget.queries)
    counts = []
    for api in request.apis:
        price = 0 if api.price_per_1k is None else money.micro(api.price_per_1k)
        if budget.cost is not None and price:
            counts.append(min(each, money.micro(budget.cost) // apis * 1000 // price))
        else:
            counts.append(each)
    return counts


def with_probe(told: Estimate, probe: Probe) -> Estimate:
    """The estimate, with what the APIs showed and how long asking takes at the rates they stated."""
    rates = {api_id: _rate(one) for api_id, one in probe.per_api.items()}
    unknown = [api_id for api_id, rate in rates.items() if rate is None]
    slowest = max((told.per_api[api_id].queries / rate for api_id, rate in rates.items() if rate), default=0.0)
    return told.model_copy(
        update={
            "probe": probe,
            "seconds": None if unknown else round(slowest, 1),
            "seconds_reason": f"no rate was stated by {', '.join(unknown)}" if unknown else None,
        }
    )


def _rate(probe: ApiProbe) -> float | None:
    """Images a second by the limits stated; the draft's unit where none is stated is requests."""
    rates = [
        limit.quota / limit.window * (1 if limit.unit == "images" else probe.max_images or BATCH)
        for limit in probe.limits
        if limit.quota and limit.window and limit.unit in {None, "images", "requests", "request"}
    ]
    return min(rates, default=None)
