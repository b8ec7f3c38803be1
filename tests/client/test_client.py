"""The clients as a whole: what they export, what they read, what they bring along."""

import inspect
import subprocess
import sys
from typing import Any

import httpx
import pytest

import client
from client import AsyncJob, AsyncMetazoo, AsyncModel, Job, Metazoo, Model, NotConfigured
from client.adapted_models import AdaptedModels, AsyncAdaptedModels
from client.admin import Admin, AsyncAdmin
from client.image_sets import AsyncImageSets, ImageSets
from client.jobs import AsyncJobs, Jobs
from client.meta_models import AsyncMetaModels, MetaModels
from client.zoo import AsyncZoo, Zoo

HEAVY = {"torch", "numpy", "PIL", "fastapi", "starlette", "celery", "redis", "safetensors", "metering", "dfml"}


def test_exported_members() -> None:
    public = {name for name, value in vars(client).items() if isinstance(value, type) and not name.startswith("_")}
    assert public == set(client.__all__)
    assert client.__all__ == sorted(client.__all__)


def test_importing_brings_nothing_heavy() -> None:
    code = "from client import Metazoo, AsyncMetazoo\nimport sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(name.split(".")[0] for name in ran.stdout.split())


def test_environment_is_read_by_the_constructor_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"items": [], "next": None})

    monkeypatch.setenv("METAZOO_URL", "http://env.test/prefix/")
    monkeypatch.setenv("METAZOO_API_KEY", "from-env")
    transport = httpx.MockTransport(handler)
    with Metazoo(transport=transport) as configured:
        monkeypatch.delenv("METAZOO_URL")
        configured.jobs.list()
    with Metazoo("http://arg.test", "from-arg", transport=transport) as given:
        given.meta_models.list()
    assert [str(request.url).split("?")[0] for request in seen] == [
        "http://env.test/prefix/v1/jobs",
        "http://arg.test/v1/meta-models",
    ]
    assert [request.headers["authorization"] for request in seen] == ["Bearer from-env", "Bearer from-arg"]


def test_each_key_goes_to_its_own_service_alone() -> None:
    seen: dict[str, str | None] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        seen[request.url.host] = request.headers.get("authorization")
        return httpx.Response(404)

    with Metazoo(
        "http://server.test", "s", zoo_url="http://zoo.test", transport=httpx.MockTransport(handler)
    ) as metazoo:
        for ask in (lambda: metazoo.jobs.retrieve("x"), metazoo.zoo.usage):
            with pytest.raises(client.NotFound):
                ask()
    assert seen == {"server.test": "Bearer s", "zoo.test": None}


@pytest.mark.parametrize("make", [Metazoo, AsyncMetazoo])
@pytest.mark.parametrize("resource", ["jobs", "meta_models", "zoo"])
def test_what_was_not_given_is_named(make: Any, resource: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAZOO_URL", raising=False)
    monkeypatch.delenv("METAZOO_ZOO_URL", raising=False)
    with pytest.raises(NotConfigured, match="set METAZOO_"):
        getattr(make(), resource)


PAIRS = [
    (Metazoo, AsyncMetazoo),
    (Job, AsyncJob),
    (Jobs, AsyncJobs),
    (MetaModels, AsyncMetaModels),
    (AdaptedModels, AsyncAdaptedModels),
    (ImageSets, AsyncImageSets),
    (Admin, AsyncAdmin),
    (Zoo, AsyncZoo),
    (Model, AsyncModel),
]


@pytest.mark.parametrize(("blocking", "awaited"), PAIRS)
def test_both_clients_offer_the_same_and_show_how_it_is_used(blocking: type, awaited: type) -> None:
    def offers(kind: type) -> dict[str, str]:
        """Each method with what it takes."""
        methods = {name: each for name, each in vars(kind).items() if inspect.isfunction(each)}
        public = {name: each for name, each in methods.items() if not name.startswith(("_", "model_"))}
        return {name: str(inspect.signature(each)).split(" -> ")[0] for name, each in public.items()}

    assert offers(blocking) == offers(awaited)
    for name in set(offers(blocking)) - {"close"}:
        assert f"{name}(" in str(vars(blocking)[name].__doc__), f"{blocking.__name__}.{name} shows no example"


@pytest.mark.parametrize(
    ("url", "key"), [("host:8000", None), ("ftp://host", None), ("http://[", None), ("http://h", "a\n")]
)
def test_what_cannot_work_is_refused_at_once(url: str, key: str | None) -> None:
    with pytest.raises(NotConfigured):
        Metazoo(url, key)
