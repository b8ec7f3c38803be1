"""Bodies in gzip and deflate over a real Redis: the same answers, the same limits, no bombs."""

import gzip
import json
import os
import zlib
from typing import Any

import anyio
import httpx
import pytest
import torch

from contracts import oip
from contracts.problems import URN
from edge.middleware import Decompress

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
PATH = "/v2/models/colours/infer"


async def send(zoo: Any, key: dict[str, str], body: Any, encoding: str, **headers: str) -> httpx.Response:
    return await zoo.http.post(PATH, content=body, headers={**key, **headers, "Content-Encoding": encoding})


def refused(response: httpx.Response, status: int, name: str) -> None:
    assert (response.status_code, response.json()["type"]) == (status, URN + name), response.text


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("encoding", PACK)
async def test_packed_bodies_get_the_answers_of_plain_ones(zoo, colours, tensor, encoding: str, binary: bool) -> None:
    key = await zoo.key()
    body, headers = oip.encode_request([tensor(colours(5))], binary=binary)
    plain = await zoo.http.post(PATH, content=body, headers={**key, **headers, "Idempotency-Key": "same"})
    packed = await send(zoo, key, PACK[encoding](body), encoding, **headers, **{"Idempotency-Key": "same"})
    assert packed.status_code == 200, packed.text
    assert packed.content == plain.content
    assert packed.headers["idempotency-replayed"] == "true"  # the body is the same, however it travelled
    assert (await send(zoo, key, PACK[encoding](body), encoding.upper(), **headers)).content == plain.content


async def test_a_body_may_come_byte_by_byte(zoo, colours, tensor) -> None:
    body, headers = oip.encode_request([tensor(colours(2))], binary=True)

    async def dripping():
        for byte in gzip.compress(body):
            yield bytes([byte])

    assert (await send(zoo, await zoo.key(), dripping(), "gzip", **headers)).status_code == 200


async def test_limits_count_what_is_unpacked(zoo) -> None:
    key = await zoo.key()
    for size in (4097, 50_000_000):
        body = gzip.compress(bytes(size), 9)
        refused(await send(zoo, key, body[:4000] if size > 10**6 else body, "gzip"), 413, "too-large")
    exact = json.dumps({"inputs": []}).ljust(4096).encode()
    refused(await send(zoo, key, gzip.compress(exact), "gzip"), 400, "malformed")  # read in full: it holds no tensor
    noise = os.urandom(4200)
    refused(await send(zoo, key, gzip.compress(noise), "gzip"), 413, "too-large")
    assert await zoo.spent(key) == 0


@pytest.mark.parametrize("encoding", PACK)
async def test_damaged_bodies_are_refused(zoo, colours, tensor, encoding: str) -> None:
    key = await zoo.key()
    plain, headers = oip.encode_request([tensor(colours(1))], binary=False)
    packed = PACK[encoding](plain)
    flipped = packed[:-2] + bytes([packed[-2] ^ 1]) + packed[-1:]
    for body in (plain, packed[:-1], packed[:5], b"", packed + b"x", packed + packed, flipped):
        refused(await send(zoo, key, body, encoding, **headers), 400, "malformed")
    assert await zoo.spent(key) == 0


async def test_other_routes_take_them_too(zoo, admin) -> None:
    body = gzip.compress(json.dumps({"budget": 7}).encode())
    headers = {**admin, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await zoo.http.post("/admin/keys", content=body, headers=headers)).json()["budget"] == 7


async def test_pieces_stay_small_and_all_arrive() -> None:
    plain = torch.arange(500_000, dtype=torch.int32).numpy().tobytes() + bytes(3_000_000)
    packed = gzip.compress(plain)
    parts = [packed[at : at + 10_000] for at in range(0, len(packed), 10_000)]
    received: list[bytes] = []

    async def upstream() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def app(scope: Any, receive: Any, _: Any) -> None:
        assert scope["headers"] == [(b"x-other", b"1")]
        more = True
        while more:
            message = await receive()
            received.append(message["body"])
            more = message["more_body"]

    headers = [(b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(packed)), (b"x-other", b"1")]
    with anyio.fail_after(20):
        await Decompress(app, most=len(plain))({"type": "http", "headers": headers}, upstream, None)
    assert b"".join(received) == plain
    assert max(map(len, received)) <= 2**18
