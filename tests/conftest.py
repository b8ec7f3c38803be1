"""Fixtures of every folder: a real Redis, the data sets where they are present, and a check of OpenAPI documents."""

import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

ROOT = Path(__file__).parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server, one for the session, durable as in production."""
    from metazoo import redis_server

    server = redis_server.start(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of a real, empty server. Tests that use it are marked `redis`."""
    import redis

    with redis.Redis.from_url(redis_server) as connection:
        connection.flushall()
        connection.script_flush()
    return redis_server


@pytest.fixture
async def redis(redis_url: str, anyio_backend: str) -> AsyncIterator[Any]:
    """A client of it, as services have theirs."""
    from metering.scripts import connect

    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server of another make, on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A prefix in an empty bucket, which the environment lets this process and its children write to."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower()
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/metazoo"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where the public data sets lie. Tests that use it are marked `data`."""
    folder = Path(os.environ.get("METAZOO_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set METAZOO_DATA")
    return folder


@pytest.fixture(scope="session")
def contradictions() -> Callable[..., Awaitable[list[str]]]:
    """What an OpenAPI document says, against what is answered: schemathesis makes requests from the one."""
    return _contradictions


async def _contradictions(
    http: httpx.AsyncClient,
    document: dict[str, Any],
    headers: dict[str, str],
    paths: set[str],
    there: Sequence[dict[str, str]],
    *,
    sound: Mapping[str, dict[str, Any]],
    examples: int = 12,
) -> list[str]:
    """Every request whose answer is a 5xx, a status that the document does not name for it, or does not come in 20 s.

    `examples` of each operation of `paths`, those that delete last. `there` are values of path parameters that name
    something, taken by turns; every other request of an operation gets them. `sound` are bodies that paths accept; half of
    those requests send them, as they are or with one field of what was generated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import strategies as st

        @schemathesis.serializer("application/zip")
        def as_it_is(_: Any, value: Any) -> Any:
            return bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode()

        schema = schemathesis.openapi.from_dict(document)
    cases: list[Any] = []

    def collect(operation: Any) -> None:
        @given(st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)))
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def draw(case: Any) -> None:
            cases.append(case)

        draw()

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in paths:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                await anyio.to_thread.run_sync(collect, operation)
    assert len({(case.operation.path, case.method) for case in cases}) >= len(paths)
    found = []
    for number, case in enumerate(sorted(cases, key=lambda case: case.method == "DELETE")):
        if number % 2:
            names = there[number // 2 % len(there)]
            case.path_parameters.update({name: value for name, value in names.items() if name in case.path_parameters})
            if number % 4 == 3 and isinstance(case.body, dict) and case.operation.path in sound:
                changed = number // 4 % (len(case.body) + 1)  # beyond the last: none
                case.body = {**sound[case.operation.path], **dict(list(case.body.items())[changed : changed + 1])}
        told = case.as_transport_kwargs(base_url=str(http.base_url))
        told["headers"] = {
            name: value
            for name, value in {**dict(told.get("headers") or {}), **headers}.items()
            if value.isascii() and value.isprintable()
        }
        known = {name: value for name, value in told.items() if name in {"method", "url", "params", "json", "headers"}}
        if isinstance(told.get("data"), bytes | str):
            known["content"] = told["data"]
        elif told.get("files"):
            known["files"] = told["files"]
        try:
            with anyio.fail_after(20):
                answer = await http.request(**known)
        except (httpx.InvalidURL, UnicodeError, ValueError):
            continue  # no client can send it
        except TimeoutError:
            found.append(f"{known['method']} {known['url']}: no answer")
            continue
        documented = {*case.operation.definition.raw["responses"], "405"}
        if answer.status_code >= 500 or str(answer.status_code) not in documented:
            found.append(f"{known['method']} {known['url']}: {answer.status_code} {answer.text[:200]}")
    return found
