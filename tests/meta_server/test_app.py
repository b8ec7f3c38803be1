"""What holds for every route: keys, ids, limits, errors, and a description that leaves nothing out."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from contracts.problems import MEDIA_TYPE, URN
from meta_server.app import create_app
from meta_server.settings import Settings

MakeSettings = Callable[..., Settings]


@pytest.fixture
def app(make_settings: MakeSettings) -> FastAPI:
    """Not started: what needs no Redis."""
    return create_app(make_settings("redis://127.0.0.1:1/0"))


def operations(app: FastAPI) -> list[tuple[str, dict[str, Any]]]:
    paths = app.openapi()["paths"]
    return [
        (f"{method.upper()} {path}", operation) for path, each in paths.items() for method, operation in each.items()
    ]


def test_every_route_of_the_contract_is_there(app: FastAPI) -> None:
    assert {name for name, _ in operations(app)} == {
        "POST /v1/jobs",
        "GET /v1/jobs",
        "POST /v1/jobs/estimate",
        "GET /v1/jobs/{job_id}",
        "PATCH /v1/jobs/{job_id}",
        "DELETE /v1/jobs/{job_id}",
        "GET /v1/jobs/{job_id}/budget",
        "GET /v1/jobs/{job_id}/metrics",
        "GET /v1/jobs/{job_id}/answers",
        "GET /v1/jobs/{job_id}/answers/{name}",
        "GET /v1/jobs/{job_id}/images",
        "POST /v1/jobs/{job_id}/cancel",
        "POST /v1/jobs/{job_id}/pause",
        "POST /v1/jobs/{job_id}/resume",
        "POST /v1/jobs/{job_id}/retry",
        "GET /v1/jobs/{job_id}/events",
        "GET /v1/meta-models",
        "GET /v1/meta-models/{meta_model_id}",
        "GET /v1/meta-models/{meta_model_id}/files/{name}",
        "POST /v1/meta-models/{meta_model_id}/predict",
        "PATCH /v1/meta-models/{meta_model_id}",
        "DELETE /v1/meta-models/{meta_model_id}",
        "POST /v1/meta-models/{meta_model_id}/restore",
        "GET /v1/meta-models/{meta_model_id}/archive",
        "POST /v1/meta-models/compare",
        "POST /v1/meta-models/{meta_model_id}/adapt",
        "GET /v1/adapted-models",
        "GET /v1/adapted-models/{adapted_id}",
        "DELETE /v1/adapted-models/{adapted_id}",
        "GET /v1/adapted-models/{adapted_id}/files/{name}",
        "POST /v1/image-sets",
        "GET /v1/image-sets",
        "GET /v1/image-sets/{image_set}",
        "DELETE /v1/image-sets/{image_set}",
        "GET /v2",
        "GET /v2/health/live",
        "GET /v2/health/ready",
        "POST /v2/repository/index",
        "GET /v2/models/{model}",
        "GET /v2/models/{model}/ready",
        "POST /v2/models/{model}/infer",
        "POST /v1/models/{model}/classify",
        "POST /admin/keys",
        "GET /admin/keys",
        "DELETE /admin/keys/{key_id}",
        "GET /admin/tenants/{tenant}",
        "PUT /admin/tenants/{tenant}/quota",
        "GET /admin/audit",
        "GET /health/live",
        "GET /health/ready",
    }


def test_every_route_parameter_and_response_is_described(app: FastAPI) -> None:
    for name, operation in operations(app):
        of_the_zoo = name.partition(" ")[2].startswith(("/v2", "/v1/models/"))  # these have summaries, tested there
        assert of_the_zoo or operation["description"], name
        assert all(parameter.get("description") for parameter in operation.get("parameters", [])), name
        for status, response in operation["responses"].items():
            assert response["description"], name
            assert "X-Request-Id" in response["headers"], name
            if int(status) >= 400:
                assert list(response["content"]) == [MEDIA_TYPE], name
        if "/v1/" in name:
            assert operation["security"], name
            assert {"401", "422", "500", "503"} <= set(operation["responses"]), name


def test_every_field_is_described(app: FastAPI) -> None:
    missing = [
        f"{name}.{field}"
        for name, schema in app.openapi()["components"]["schemas"].items()
        for field, described in schema.get("properties", {}).items()
        if not described.get("description")
    ]
    assert missing == []


def test_settings_come_from_the_environment_and_hide_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hush1@h/0")
    monkeypatch.setenv("METAZOO_ARTIFACTS", "/somewhere")
    monkeypatch.setenv("METAZOO_SECRET_KEY", "hush2")
    monkeypatch.setenv("METAZOO_SERVER_API_KEY", "hush3hush3hush3hush3")
    settings = Settings()
    assert settings.artifacts == "/somewhere"
    assert "hush" not in repr(settings) + settings.model_dump_json()


@pytest.fixture
async def down(open_app: Any, make_settings: MakeSettings) -> httpx.AsyncClient:
    """A client of a server whose Redis is not there."""
    return await open_app(make_settings("redis://127.0.0.1:1/0", max_body=1024))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/x"),
        ("GET", "/v1/jobs/x/events"),
        ("GET", "/v1/meta-models"),
        ("GET", "/health/ready"),
    ],
)
async def test_without_redis_every_answer_is_503(
    method: str, path: str, down: httpx.AsyncClient, request_body: Any
) -> None:
    response = await down.request(method, path, json=request_body if method == "POST" else None)
    assert (response.status_code, response.json()["type"]) == (503, f"{URN}unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert (await down.get("/health/live")).json() == {"status": "ok"}


@pytest.mark.anyio
@pytest.mark.parametrize("sent", ["", "Bearer ", "Bearer wrong", "Basic c2VydmVyLWtleQ==", "Bearer sérver".encode()])
async def test_without_the_key_nothing_is_told(sent: Any, down: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs", "/v1/jobs/x", "/v1/meta-models/x/files/y"):
        response = await down.get(path, headers={"Authorization": sent})
        assert (response.status_code, response.json()["type"]) == (401, f"{URN}unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.anyio
async def test_bodies_have_an_end(down: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"[" * 100

    for options in ({"content": b"x" * 2000}, {"content": endless()}):
        response = await down.post("/v1/jobs", headers={"Content-Type": "application/json"}, **options)
        assert (response.status_code, response.json()["type"]) == (413, f"{URN}too-large")


@pytest.mark.anyio
async def test_every_response_has_a_request_id(down: httpx.AsyncClient) -> None:
    assert (await down.get("/health/live", headers={"X-Request-Id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = {
        (await down.get("/v1/nothing", headers={"X-Request-Id": "no good"})).headers["x-request-id"] for _ in range(3)
    }
    assert len(made) == 3
    assert "no good" not in made


@pytest.mark.anyio
async def test_faults_of_ours_are_a_500_that_tells_nothing(
    down: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr("meta_server.store.jobs.JobStore.list", broken)
    response = await down.get("/v1/jobs")
    assert (response.status_code, response.json()["type"]) == (500, f"{URN}internal")
    assert "42" not in response.text
    assert len(response.headers.get_list("x-request-id")) == 1
