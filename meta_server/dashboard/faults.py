"""Errors of pages are pages; errors of the REST interface stay problem documents."""

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from contracts.problems import ProblemError
from edge import errors
from meta_server.dashboard.look import page

_NO_PAGES = ("/v1/", "/v2/", "/health/", "/static/", "/openapi.json")


async def answer(request: Request, error: Exception) -> Response:
    """The response to `error`: for a person without a session, the way to sign in."""
    if request.url.path.startswith(_NO_PAGES) or "text/html" not in request.headers.get("accept", ""):
        return await errors.answer(request, error)
    told = errors.as_problem(request, error)
    if told.problem.status == 401 and request.method == "GET":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(request.url_for("sign_in").include_query_params(to=request.url.path + query), 303)
    if isinstance(error, HTTPException) and error.status_code == 404:
        told = ProblemError("not-found", f"no page is at {request.url.path}: check the address")
    return page(request, "error.html", status=told.problem.status, headers=told.headers, problem=told.problem)
