"""One POST a question, to APIs that speak no protocol: what is sent, and what of the answer is not about its form."""

from collections.abc import Mapping
from typing import NoReturn

import httpx
import numpy as np
from numpy.typing import NDArray

from client._flow import AsyncDriver, Request, once
from client._limits import RateLimits
from client.errors import InvalidAnswer
from client.model import Answer
from contracts.oip import Tensor

COUNT = "X-Images"  # carries from `encode` to `infer` how many images a body asks about; never sent
LARGEST = 1e30  # of a score: float32 ends beyond it, and probabilities long before


async def post(
    driver: AsyncDriver, path: str, body: bytes, headers: Mapping[str, str], *, idempotency_key: str | None
) -> httpx.Response:
    """Send a body once; with a key it may be sent again. Raises `InvalidAnswer` for any success but 200."""
    sent = {name: value for name, value in headers.items() if name != COUNT}
    if idempotency_key is not None:
        sent["Idempotency-Key"] = idempotency_key
    request = Request("POST", path, headers=sent, content=body, repeatable=idempotency_key is not None)
    response = await driver.run(once(request, echo=False))
    if response.status_code != 200:
        refuse(f"answered {response.status_code} where success is exactly 200")
    return response


def answered(response: httpx.Response, scores: NDArray[np.float32]) -> Answer:
    """The answer whose scores, (images, classes), were read from `response`."""
    return Answer(
        probabilities=Tensor("scores", "FP32", scores.shape, scores.tobytes()),
        cost=None,
        replayed=response.headers.get("idempotency-replayed", "").lower() == "true",
        limits=RateLimits.parse(response.headers),
    )


def refuse(what: str) -> NoReturn:
    """Raises `InvalidAnswer`: the API did `what`."""
    raise InvalidAnswer(f"the API {what}: check its URL and the options of its adapter")
