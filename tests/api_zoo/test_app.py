"""The application without a Redis: it describes itself, and answers nothing that it cannot count."""

from pathlib import Path

import pytest

from api_zoo.app import create_app
from api_zoo.folder import BadZoo
from api_zoo.settings import Settings
from contracts.problems import MEDIA_TYPE
from metazoo.redis_server import free_port

pytestmark = pytest.mark.anyio


async def test_nothing_is_answered_while_redis_is_away(running, colours, admin) -> None:
    async with running(f"redis://127.0.0.1:{free_port()}/0") as zoo:
        key = {"Authorization": "Bearer mz_" + "a" * 12 + "_" + "b" * 43}
        assert (await zoo.http.get("/v2/health/live")).status_code == 200
        for response in [
            await zoo.http.get("/v2/health/ready"),
            await zoo.http.get("/v2/models/colours", headers=key),
            await zoo.http.post("/v2/repository/index", headers=key),
            await zoo.infer(key, colours(1)),
            await zoo.http.get("/v1/usage", headers=key),
            await zoo.http.post("/admin/keys", json={}, headers=admin),
        ]:
            assert response.status_code == 503, response.text
            assert response.headers["content-type"] == MEDIA_TYPE
            assert response.headers["retry-after"] == "5"


async def test_it_opens_the_folder_of_its_settings(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", admin_key="a" * 16, folder=tmp_path)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        assert list(app.state.services.models) == ["toy-00", "toy-01"]
    with pytest.raises(BadZoo, match="no zoo folder"):
        async with (unset := create_app(settings.model_copy(update={"folder": None}))).router.lifespan_context(unset):
            pass


def test_it_describes_itself_without_settings() -> None:
    described = create_app(Settings.model_construct()).openapi()
    infer = described["paths"]["/v2/models/{model}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert {"200", "400", "401", "402", "403", "404", "408", "409", "413", "415", "422", "429", "500", "503"} <= set(
        infer["responses"]
    )
    assert infer["responses"]["402"]["content"].keys() == {MEDIA_TYPE}
    assert {"X-Query-Cost", "RateLimit", "RateLimit-Policy", "Idempotency-Replayed", "X-Request-Id"} <= set(
        infer["responses"]["200"]["headers"]
    )
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path


def test_secrets_do_not_show(running) -> None:
    settings = Settings(redis_url="redis://:hidden@127.0.0.1/0", admin_key="hidden-hidden-hidden")
    assert "hidden" not in repr(settings) + str(settings) + settings.model_dump_json()
