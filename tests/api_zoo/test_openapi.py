"""What the OpenAPI document says, against what is answered: schemathesis makes requests from the one and checks the other."""

import warnings

import anyio
import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

EXAMPLES = 12  # of each operation


async def contradictions(
    http: httpx.AsyncClient, document: dict, headers: dict[str, str], skip: set[str], there: dict[str, str]
) -> list[str]:
    """Every request whose answer is a 5xx or a status that the document does not name for it.

    `there` are values of path parameters that name something; every other request of an operation gets them.
    """
    schema = schemathesis.openapi.from_dict(document)
    found: list[str] = []
    cases = []

    def collect(operation) -> None:
        @given(st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)))
        @settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def draw(case) -> None:
            cases.append((operation, case))

        draw()

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path not in skip:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                await anyio.to_thread.run_sync(collect, operation)
    for number, (operation, case) in enumerate(cases):
        if number % 2:
            case.path_parameters.update({name: value for name, value in there.items() if name in case.path_parameters})
        told = case.as_transport_kwargs(base_url="http://zoo")
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
            answer = await http.request(**known)
        except (httpx.InvalidURL, UnicodeError, ValueError):
            continue  # no client can send it
        documented = {*operation.definition.raw["responses"], "405"}
        if answer.status_code >= 500 or str(answer.status_code) not in documented:
            found.append(f"{known['method']} {known['url']}: {answer.status_code} {answer.text[:200]}")
    assert len(cases) > 50
    return found


async def test_the_zoo_answers_as_it_says(zoo, admin) -> None:
    document = (await zoo.http.get("/openapi.json")).json()
    key = await zoo.key(budget=10**6)
    admins = {path for path in document["paths"] if path.startswith("/admin")}
    kept = (await zoo.http.get("/v1/usage", headers=key)).json()["key"]
    there = {"model": "colours", "key_id": kept}
    assert await contradictions(zoo.http, document, key, admins, there) == []
    assert await contradictions(zoo.http, document, admin, set(document["paths"]) - admins, there) == []
