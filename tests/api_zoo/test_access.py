"""Who may not ask is told so before a byte of the body is read, and slowed down after many tries."""

from collections.abc import AsyncIterator

import pytest

from edge.failures import Failures
from metering import keyring
from tests.api_zoo.conftest import Zoo, bearer

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

ASKING = ("/v2/models/colours/infer", "/v1/models/colours/classify", "/v2/repository/index")
HOSTING = ("/admin/keys", "/admin/keys/x/top-up")


class Body:
    """Counts what is read of it."""

    def __init__(self) -> None:
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(100):
            self.read += 1
            yield b" " * 1000


@pytest.mark.parametrize(
    ("state", "paths"),
    [("none", ASKING + HOSTING), ("unknown", ASKING + HOSTING), ("revoked", ASKING), ("expired", ASKING)],
)
async def test_no_body_is_read_before_the_key_stands(
    zoo: Zoo, admin: dict[str, str], colours, monkeypatch: pytest.MonkeyPatch, state: str, paths: tuple[str, ...]
) -> None:
    monkeypatch.setattr(keyring, "STANDING_SECONDS", 0.0)
    expires = {"expires_at": "2026-01-01T00:00:00Z"} if state == "expired" else {}
    sent = {"none": {}, "unknown": bearer(f"mz_{'0' * 12}_{'0' * 43}")}
    headers = sent[state] if state in sent else await zoo.key(**expires)
    if state == "revoked":
        assert (await zoo.infer(headers, colours(1))).status_code == 200  # it is known, and used a moment ago
        (key,) = (await zoo.http.get("/admin/keys", headers=admin)).json()
        await zoo.http.delete(f"/admin/keys/{key['id']}", headers=admin)
    for path in paths:
        body = Body()
        refused = await zoo.http.post(path, content=body, headers=headers)
        assert (refused.status_code, body.read) == (401, 0), path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["x-request-id"]


async def test_a_key_that_was_revoked_this_moment_is_refused_when_it_is_charged(zoo: Zoo, admin, colours) -> None:
    headers = await zoo.key()
    assert (await zoo.infer(headers, colours(1))).status_code == 200
    (key,) = (await zoo.http.get("/admin/keys", headers=admin)).json()
    await zoo.http.delete(f"/admin/keys/{key['id']}", headers=admin)
    assert (await zoo.infer(headers, colours(1))).status_code == 401


@pytest.mark.parametrize("path", ["/v2/models/colours/infer", "/v1/usage", "/admin/keys"])
async def test_many_wrong_keys_are_slowed_down_and_right_ones_are_not(zoo: Zoo, admin, colours, path: str) -> None:
    zoo.app.state.failures = Failures(most=3)
    right, wrong = await zoo.key(), bearer(f"mz_{'0' * 12}_{'0' * 43}")
    method = "POST" if path.endswith("infer") else "GET"
    seen = [await zoo.http.request(method, path, headers=wrong) for _ in range(5)]
    assert [one.status_code for one in seen] == [401, 401, 401, 429, 429]
    assert 0 < int(seen[-1].headers["retry-after"]) <= 60
    assert (await zoo.infer(right, colours(1))).status_code == 200
    assert (await zoo.http.get("/admin/keys", headers=admin)).status_code == 200
