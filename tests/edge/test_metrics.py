"""What `/metrics` tells: every request under its route's template, nothing that a caller chose."""

import json
import subprocess
import sys

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from prometheus_client.parser import text_string_to_metric_families

from edge import errors, metrics
from edge.middleware import RequestId

pytestmark = pytest.mark.anyio


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.get("/things/{name}")
    async def thing(name: str) -> Response:
        if name == "broken":
            raise RuntimeError("a fault")
        replayed = {"Idempotency-Replayed": "true"} if name == "again" else {}
        return Response("ok", headers={"X-Query-Cost": "7", **replayed})

    held = APIRouter(prefix="/deeper")

    @held.get("/things/{name}")
    async def deeper(name: str) -> str:
        return name

    app.include_router(held, prefix="/v1")
    errors.install(app)
    metrics.install(app, "toy")
    app.add_middleware(RequestId)
    return app


@pytest.fixture
async def http(app: FastAPI):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://toy") as client:
        yield client


async def samples(http: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for key, value in sample.labels.items() if key not in {"service", "le"})): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_sum", "_created"))
    }


async def test_requests_are_counted_by_route_and_status(http: httpx.AsyncClient) -> None:
    for path in ("/things/a", "/things/b", "/things/again", "/v1/deeper/things/a", "/secret-path-of-a-caller"):
        await http.get(path)
    found = await samples(http)
    assert found["metazoo_requests_total", "GET", "/things/{name}", "200"] == 3
    assert found["metazoo_requests_total", "GET", "/v1/deeper/things/{name}", "200"] == 1
    assert found["metazoo_requests_total", "GET", "none", "404"] == 1
    assert found["metazoo_request_seconds_count", "GET", "/things/{name}"] >= 3
    assert found["metazoo_images_total",] == 14
    assert "secret-path" not in repr(found)


async def test_faults_are_counted_too(http: httpx.AsyncClient) -> None:
    assert (await http.get("/things/broken")).status_code == 500
    found = await samples(http)
    assert found["metazoo_requests_total", "GET", "/things/{name}", "500"] == 1


def test_logs_are_json_and_carry_what_is_bound() -> None:
    code = (
        "import logging, structlog\n"
        "from metazoo import logs\n"
        "logs.configure()\n"
        "with structlog.contextvars.bound_contextvars(request_id='r1', job_id='j1'):\n"
        "    structlog.get_logger().info('done', images=3)\n"
        "    logging.getLogger('other').warning('hello %s', 'you')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(json.loads, ran.stderr.splitlines())
    assert (first["event"], first["images"], first["job_id"], first["level"]) == ("done", 3, "j1", "info")
    assert (second["event"], second["request_id"], second["level"]) == ("hello you", "r1", "warning")
