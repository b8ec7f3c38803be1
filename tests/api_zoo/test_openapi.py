"""What the zoo's OpenAPI document says, against what it answers."""

import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_the_zoo_answers_as_it_says(zoo, admin, contradictions) -> None:
    document = (await zoo.http.get("/openapi.json")).json()
    key = await zoo.key(budget=10**6)
    admins = {path for path in document["paths"] if path.startswith("/admin")}
    kept = (await zoo.http.get("/v1/usage", headers=key)).json()["key"]
    there = [{"model": "colours", "key_id": kept}]
    assert await contradictions(zoo.http, document, key, set(document["paths"]) - admins, there, sound={}) == []
    assert await contradictions(zoo.http, document, admin, admins, there, sound={}) == []
