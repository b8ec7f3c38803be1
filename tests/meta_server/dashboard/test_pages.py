"""Pages as HTML: whole, escaped, guarded, and with nothing that a strict policy would stop."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from contracts.jobs import ApiProgress
from contracts.meta_models import MetaModel
from meta_server.dashboard.forms import JOB
from meta_server.dashboard.look import STATIC, STATIC_PATH
from meta_server.services import Services

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

HTML = {"Accept": "text/html"}
HOSTILE = '<img src=x onerror="alert(1)">&"\''


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


async def get(http: httpx.AsyncClient, path: str, status: int = 200) -> Page:
    """The page at a path, which keeps to the rules that all pages keep to."""
    response = await http.get(path, headers=HTML)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert response.headers["cache-control"] == "no-store"
    page = Page(response.text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for tag, attributes in page.tags:
        assert not any(name == "style" or name.startswith("on") for name in attributes), tag
        assert tag != "style"
        if tag == "script":
            assert str(attributes["src"]).startswith(STATIC_PATH)
        for name in ("src", "href"):
            link = attributes.get(name) or "/"
            assert link.startswith(("/", "#", "https://github.com/kserve/"))
            if link.startswith(STATIC_PATH):
                assert (STATIC / link.removeprefix(f"{STATIC_PATH}/")).is_file() or "/vendor/" in link
    return page


async def test_the_reference_is_served_from_here(http: httpx.AsyncClient) -> None:
    page = await get(http, "/docs")
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "script"]
    assert sources == [f"{STATIC_PATH}/vendor/swagger-ui-bundle.js", f"{STATIC_PATH}/reference.js"]


async def test_without_anything_pages_say_what_to_do(http: httpx.AsyncClient) -> None:
    assert "No jobs yet" in (await get(http, "/")).text
    assert "No failed jobs" in (await get(http, "/?status=failed")).text
    assert "No meta-models yet" in (await get(http, "/meta-models")).text
    await get(http, "/sign-in")


async def test_a_job_is_told_and_nothing_it_says_is_taken_as_html(
    http: httpx.AsyncClient, services: Services, request_body: Any
) -> None:
    body = request_body | {"name": HOSTILE, "tags": ["demo"]}
    body["apis"][0]["url"] += "/%3Cscript%3E"
    job = (await http.post("/v1/jobs", json=body)).json()["id"]
    lease = await services.jobs.take(job, "acquire:a0", "test")
    assert lease is not None
    await services.jobs.work.begin(job, lease)
    url = body["apis"][0]["url"]
    await services.jobs.work.set_api(job, lease, "a0", ApiProgress(url=url, state="dropped", reason=HOSTILE))
    page = await get(http, f"/jobs/{job}")
    assert page.text.count(HOSTILE) >= 2
    assert "teacher-secret" not in page.text
    moves = {attributes["data-post"] for _, attributes in page.tags if "data-post" in attributes}
    assert moves == {f"/v1/jobs/{job}/{move}" for move in ("pause", "cancel")}
    assert HOSTILE in (await get(http, "/")).text
    await http.post(f"/v1/jobs/{job}/cancel")
    await get(http, "/?status=cancelling", status=200)


async def test_an_api_that_stands_in_is_told_with_the_one_it_replaced(
    http: httpx.AsyncClient, services: Services, request_body: Any
) -> None:
    apis = [{"url": f"http://zoo.test/v2/models/teacher-{n:02d}"} for n in range(9)]
    job = (await http.post("/v1/jobs", json=request_body | {"apis": apis})).json()
    (spare,) = [api_id for api_id, one in job["progress"]["per_api"].items() if one["state"] == "done"]
    gone = "a0" if spare != "a0" else "a1"
    lease = await services.jobs.take(job["id"], f"acquire:{gone}", "test")
    assert lease is not None
    here, other = ApiProgress(url=apis[int(gone[1:])]["url"], state="dropped"), apis[int(spare[1:])]["url"]
    there = ApiProgress(url=other, planned=9, stands_in_for=gone)
    await services.jobs.work.set_api(job["id"], lease, gone, here, {spare: there})
    assert f"in the place of teacher-0{gone[1:]}" in (await get(http, f"/jobs/{job['id']}")).text


async def test_the_moves_a_page_offers_are_moves_the_server_makes(http: httpx.AsyncClient, request_body: Any) -> None:
    job = (await http.post("/v1/jobs", json=request_body)).json()["id"]
    for move, then in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        page = await get(http, f"/jobs/{job}")
        path = f"/v1/jobs/{job}/{move}"
        assert path in {attributes.get("data-post") for _, attributes in page.tags}
        assert (await http.post(path)).json()["status"] == then
    ended = await get(http, f"/jobs/{job}")
    assert not [attributes for _, attributes in ended.tags if "data-post" in attributes]


async def test_older_jobs_are_a_page_away(
    http: httpx.AsyncClient, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meta_server.dashboard.pages.PAGE", 2)
    made = [(await http.post("/v1/jobs", json=request_body)).json()["id"] for _ in range(3)]
    for job in made:
        await http.post(f"/v1/jobs/{job}/cancel")
    first = await get(http, "/?status=cancelled")
    (older,) = [a["href"] for tag, a in first.tags if tag == "a" and "after=" in (a["href"] or "")]
    assert "status=cancelled" in str(older)
    second = await get(http, str(older))
    seen = [a["href"] for page in (first, second) for tag, a in page.tags if tag == "a" and "/jobs/job" in a["href"]]
    assert seen == [f"/jobs/{job}" for job in sorted(made, reverse=True)]


async def test_a_meta_model_is_told(http: httpx.AsyncClient, publish: Callable[..., Awaitable[MetaModel]]) -> None:
    model = await publish()
    page = await get(http, f"/meta-models/{model.id}")
    for name in model.files:
        path = f"/v1/meta-models/{model.id}/files/{name}"
        assert path in {attributes.get("href") for _, attributes in page.tags}
        assert (await http.get(path)).status_code == 200
    assert model.job in page.text
    assert "toy" in (await get(http, "/meta-models")).text
    await get(http, f"/jobs/{model.job}")


@pytest.mark.parametrize("path", ["/jobs/job_none", "/meta-models/mm_none", "/nowhere", "/static/none.js"])
async def test_what_is_not_there_is_a_page_for_people_and_a_problem_for_programs(
    path: str, http: httpx.AsyncClient
) -> None:
    if not path.startswith("/static"):
        assert "no" in (await get(http, path, status=404)).text
    assert (await http.get(path)).json()["status"] == 404
    assert (await http.get("/v1/nowhere", headers=HTML)).json()["status"] == 404


async def test_faults_of_an_address_are_told(http: httpx.AsyncClient) -> None:
    assert "status" in (await get(http, "/?status=asleep", status=422)).text


async def test_a_server_without_redis_still_answers_with_pages(open_app: Any, make_settings: Any) -> None:
    down = await open_app(make_settings("redis://127.0.0.1:1/0"))
    assert "Redis is not reachable" in (await get(down, "/", status=503)).text


async def test_static_files_are_kept_for_good_and_named_by_what_they_are(http: httpx.AsyncClient) -> None:
    for file in STATIC.rglob("*.*"):
        response = await http.get(f"{STATIC_PATH}/{file.relative_to(STATIC)}")
        assert response.content == file.read_bytes()
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["x-content-type-options"] == "nosniff"
        if file.suffix == ".js":
            assert response.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert "immutable" not in (await http.get(f"{STATIC_PATH}/../app.py")).headers.get("cache-control", "")


async def test_the_form_offers_what_a_job_may_say(http: httpx.AsyncClient, request_body: Any) -> None:
    page = await get(http, "/jobs/new")
    shown = {attributes["name"]: attributes for _, attributes in page.tags if "data-kind" in attributes}
    places = ("budget", "meta_model", "evaluation")
    plain = [field for place in places for field in JOB.fields(place)]
    assert {field.path for field in plain} <= set(shown)
    for method in JOB.variants("method"):  # every default that the form shows is one that the server takes
        options = JOB.fields("method", method)
        assert {field.path for field in options} <= set(shown)
        body: dict[str, Any] = {**request_body, "budget": dict(request_body["budget"]), "method": {"name": method}}
        for field in plain + options:
            if field.default is not None:
                put(body, field.path.split("."), field.default)
        faults = (await http.post("/v1/jobs", json=body)).json().get("errors", [])
        assert [fault for fault in faults if fault["field"] != "method.gradients.source"] == []
    response = await http.post("/v1/jobs", json=request_body | {"budget": {"queries": 0}})
    assert {fault["field"] for fault in response.json()["errors"]} <= set(shown)


def put(body: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        body = body.setdefault(name, {})
    body[path[-1]] = value


def test_no_script_evaluates_or_reaches_elsewhere() -> None:
    for file in STATIC.glob("*.js"):
        text = file.read_text()
        assert not re.search(r"\beval\(|new Function|innerHTML|localStorage|https?://", text), file.name


def test_the_libraries_are_the_reviewed_ones(hatch_build: Any) -> None:
    for library in hatch_build.LIBRARIES:
        file = STATIC / "vendor" / library.name
        if not file.exists():
            pytest.skip(f"{library.name} is not here: npm was not reachable when this was installed")
        assert hashlib.sha256(file.read_bytes()).hexdigest() == library.digest


async def test_a_page_offers_what_its_caller_may_do_and_shows_its_tenant_alone(
    http: httpx.AsyncClient, publish: Callable[..., Awaitable[MetaModel]], request_body: Any
) -> None:
    model = await publish()
    job = (await http.post("/v1/jobs", json=request_body | {"name": "ours"})).json()["id"]
    for tenant, role in (("default", "viewer"), ("other", "user")):
        made = (await http.post("/admin/keys", json={"name": "k", "tenant": tenant, "role": role})).json()
        headers = {"Authorization": f"Bearer {made['secret']}"} | HTML
        pages = {path: (await http.get(path, headers=headers)).text for path in ("/", "/meta-models")}
        assert ("ours" in pages["/"]) == (tenant == "default")
        assert (model.id in pages["/meta-models"]) == (tenant == "default")
        assert ("/jobs/new" in pages["/"]) == (role == "user")
        for path in (f"/jobs/{job}", f"/meta-models/{model.id}"):
            response = await http.get(path, headers=headers)
            assert response.status_code == (200 if tenant == "default" else 404)
            buttons = {text for tag, text in re.findall(r"<(button)[^>]*>([^<]*)", response.text)}
            assert buttons <= {"Sign out"}, path
