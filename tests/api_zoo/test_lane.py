"""The short way of infer requests answers as the long way does."""

import gzip
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch

from api_zoo.lane import Lane
from contracts import oip

pytestmark = [pytest.mark.redis, pytest.mark.anyio]

PATH = "/v2/models/colours/infer"
OWN = {"x-request-id", "date"}


def plain(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    return (
        answer.status_code,
        sorted(pair for pair in answer.headers.multi_items() if pair[0] not in OWN),
        answer.content,
    )


def cases(tensor: Callable[..., oip.Tensor], colours: Callable[[int], torch.Tensor]) -> list[tuple[str, Any, Any]]:
    raw, told = oip.encode_request([tensor(colours(2))], binary=True)
    text, as_json = oip.encode_request([tensor(colours(2))], binary=False)
    floats, float_headers = oip.encode_request([tensor(colours(2).float())], binary=True)
    many, many_headers = oip.encode_request([tensor(colours(9))], binary=True)
    return [
        (PATH, raw, told),
        (PATH, raw, told),
        (PATH, text, as_json),
        (PATH, raw, {**told, "Idempotency-Key": "once"}),
        (PATH, raw, {**told, "Idempotency-Key": "once"}),
        (PATH, text, {**as_json, "Idempotency-Key": "once"}),
        (PATH, raw, {**told, "Idempotency-Key": "x" * 256}),
        (PATH, raw, {**told, "X-Request-Id": "no id\tat all"}),
        (PATH, raw, {**told, oip.HEADER: "9999"}),
        (PATH, raw[:-1], told),
        (PATH, floats, float_headers),
        (PATH, many, many_headers),
        (PATH, b"x" * 5000, told),
        (PATH, gzip.compress(raw), {**told, "Content-Encoding": "gzip"}),
        (PATH, raw, {**told, "Content-Encoding": "identity"}),
        (PATH, raw, {**told, "Content-Encoding": "br"}),
        (PATH, raw, {**told, "Content-Type": "text/plain"}),
        (PATH, raw, {**told, "Authorization": "Bearer mz_no"}),
        ("/v2/models/none/infer", raw, told),
        ("/v2/models/others/infer", raw, told),
        ("/v2/models/%63olours/infer", raw, told),
        ("/v2/models/colours/infer/", raw, told),
    ]


async def test_it_answers_as_the_long_way_does(zoo, tensor, colours) -> None:
    lane = zoo.app.lane
    assert isinstance(lane, Lane)
    answers: dict[bool, list[Any]] = {}
    for short in (True, False):
        zoo.app.lane = lane if short else None
        key = await zoo.key(models=["colours"], budget=13)
        answers[short] = []
        for path, body, headers in cases(tensor, colours):
            sent = {**key, **headers}
            answers[short].append(plain(await zoo.http.post(path, content=body, headers=sent)))
    for case, (one, other) in enumerate(zip(answers[True], answers[False], strict=True)):
        assert one == other, case
    assert {status for status, *_ in answers[True]} >= {200, 400, 401, 402, 403, 404, 413, 415, 422}
