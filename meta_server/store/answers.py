"""The answers a job paid for, as its ledger knows them."""

from collections.abc import Sequence

from contracts.job_records import AnswerPage, PaidAnswer
from contracts.jobs import place_of
from contracts.problems import Fault, ProblemError
from metering.ledger import Ledger, Outcome, Settled


async def page(ledger: Ledger, *, after: str | None, limit: int) -> AnswerPage:
    """Up to `limit` paid answers, by API and number, from behind the one named `after`.

    Raises `ProblemError` (`invalid-request`: there is no answer `after`), `StoreUnavailable`.
    """
    paid = await _paid(ledger)
    names = [settled.chunk.id for settled in paid]
    if after is not None and after not in names:
        fault = Fault(field="after", message="must be the name of an answer of this job: the `next` of a page")
        raise ProblemError("invalid-request", "the cursor is none of this job's", errors=[fault])
    start = 0 if after is None else names.index(after) + 1
    items = [
        PaidAnswer(name=settled.chunk.id, api=settled.chunk.api, images=settled.chunk.images)
        for settled in paid[start : start + limit]
    ]
    return AnswerPage(items=items, next=items[-1].name if start + limit < len(paid) else None)


async def path(ledger: Ledger, name: str) -> str:
    """Where the answer called `name` lies. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
    for settled in await _paid(ledger):
        if settled.chunk.id == name and settled.path is not None:
            return settled.path
    raise ProblemError("not-found", f"the job has no answer {name}: its `answers` list them")


async def _paid(ledger: Ledger) -> Sequence[Settled]:
    paid = [settled for settled in await ledger.settled() if settled.outcome is Outcome.CONFIRMED]
    return sorted(paid, key=lambda settled: (place_of(settled.chunk.api), settled.chunk.number))
