"""`metazoo jobs`: start jobs on a running server and see what becomes of them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.estimates import Probe
from contracts.jobs import Job, JobStatus
from contracts.methods import METHOD_NAMES
from metazoo.connection import (
    JOB_FAILED,
    USAGE,
    AsJson,
    Server,
    connected,
    fail,
    read_ready_file,
    secret_from,
    takes_server,
)
from metazoo.latest import named

if TYPE_CHECKING:
    from client import Job as Handle

app = typer.Typer(no_args_is_help=True, help="Start jobs on a running server and see what becomes of them.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or `latest`.")]


@app.command()
@takes_server
def submit(
    server: Server,
    file: Annotated[
        str | None, typer.Argument(help="The job as JSON, `-` for standard input; flags go on top of it.")
    ] = None,
    api: Annotated[list[str] | None, typer.Option(help="URL of an API, …/v2/models/NAME. Repeatable.")] = None,
    teacher_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the APIs' key.")
    ] = None,
    all_models: Annotated[
        bool, typer.Option("--all-models", help="Every model of --ready-file, with its key.")
    ] = False,
    queries: Annotated[int | None, typer.Option(help="Most images over all APIs.")] = None,
    queries_per_api: Annotated[int | None, typer.Option(help="Most images for any one API.")] = None,
    cost: Annotated[str | None, typer.Option(help="Most money over all APIs, such as 12.50.")] = None,
    currency: Annotated[str | None, typer.Option(help="Of prices and cost: USD, EUR, …")] = None,
    seconds: Annotated[float | None, typer.Option(help="Ask no more after so many seconds of work.")] = None,
    price_per_1k: Annotated[str | None, typer.Option(help="What 1,000 images cost at each API given here.")] = None,
    access: Annotated[
        str | None, typer.Option(help="What is taken from the APIs: predict (answers) or weights, where published.")
    ] = None,
    min_apis: Annotated[int | None, typer.Option(help="Go on while this many APIs answer.")] = None,
    name: Annotated[str | None, typer.Option(help="A name to find it by.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. Repeatable.")] = None,
    method: Annotated[str | None, typer.Option(help=f"One of: {', '.join(METHOD_NAMES)}.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the method, such as steps=2000. Repeatable."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Network of the meta-model: conv4, resnet10, resnet12 or resnet18.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of its first block.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side of the images that it takes.")] = None,
    unlabeled: Annotated[
        str | None,
        typer.Option(
            metavar="SET", help="Ask about the images of this set, or of the `latest`: metazoo images upload."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Evaluate on this data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Its split: train, val or test.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes of the evaluation.")] = None,
    reuse: Annotated[
        list[str] | None,
        typer.Option(metavar="JOB", help="Learn from the answers of this job (or `latest`) too. Repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same job.")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL to be told what becomes of the job.")] = None,
    webhook_secret_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds its secret, whsec_….")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again under one key makes no second job.")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Watch it until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a job, from flags or a JSON file."""
    document = _read_document(file) if file is not None else {}
    if all_models or api:
        document["apis"] = _apis(api or [], teacher_key_env, server.ready_file, all_models)
    told = {"price_per_1k": price_per_1k, "access": access}
    of_each = {field: value for field, value in told.items() if value is not None}
    if of_each:
        document["apis"] = [{**of_each, **one} for one in document.get("apis") or []]
    limits = {"queries": queries, "queries_per_api": queries_per_api, "cost": cost}
    _put(document, "budget", **limits, currency=currency, seconds=seconds)
    _put(document, "method", name=method, **_options(option or []))
    _put(document, "meta_model", backbone=backbone, width=width)
    _put(document, "evaluation", dataset=dataset, split=split, episodes=episodes)
    if webhook is not None:
        if webhook_secret_env is None:
            fail("--webhook needs --webhook-secret-env: what is sent is signed", USAGE)
        document["webhook"] = {"url": webhook, "secret": secret_from(webhook_secret_env)}
    given = {
        "min_apis": min_apis,
        "name": name,
        "tags": tag,
        "seed": seed,
        "image_size": image_size,
    }
    document |= {field: value for field, value in given.items() if value is not None}
    with connected(server) as metazoo:
        if unlabeled is not None:
            document["unlabeled"] = named(metazoo.image_sets, unlabeled)
        if reuse:
            document["reuse"] = [named(metazoo.jobs, job) for job in reuse]
        job = metazoo.jobs.create(document, idempotency_key=idempotency_key)
        if not follow:
            typer.echo(
                job.model_dump_json() if as_json else f"{job.id} {job.status}\nnext: metazoo jobs watch {job.id}"
            )
            return
        _watch(job, as_json=as_json)


@app.command()
@takes_server
def estimate(
    server: Server,
    file: Annotated[str, typer.Argument(help="The job as JSON, `-` for standard input.")],
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask each API about a few images, which it charges for.")
    ] = False,
    probe_images: Annotated[int, typer.Option(min=2, max=64, help="Most images for each API, with --probe.")] = 8,
    gain: Annotated[float | None, typer.Option(help="Say how many images so many points over untrained need.")] = None,
    shots: Annotated[int, typer.Option(min=1, help="Of the accuracy that --gain means: images a class.")] = 1,
    as_json: AsJson = False,
) -> None:
    """What a job would come to: queries, cost, and the accuracy that our measurements suggest. Only --probe spends."""
    document = _read_document(file) | ({} if gain is None else {"aim": {"shots": shots, "gain": gain}})
    with connected(server) as metazoo:
        told = metazoo.jobs.estimate(document, probe=probe, probe_images=probe_images)
    if as_json:
        typer.echo(told.model_dump_json())
        return
    cost = "unknown: give each API a price_per_1k" if told.cost is None else f"{told.cost} {told.currency} at most"
    typer.echo(f"images  {told.queries} to {len(told.per_api)} APIs\ncost    {cost}")
    took = f"unknown: {told.seconds_reason}" if told.seconds is None else f"{told.seconds:,.0f} s at the stated rates"
    typer.echo(f"asking  {took}")
    if told.probe is not None:
        _show_probe(told.probe)
    if told.needed is not None:
        likely, safe = (f"{n:,}" if n is not None else "unknown" for n in (told.needed.likely, told.needed.safe))
        why = f" ({told.needed.reason})" if told.needed.reason else ""
        typer.echo(f"needed  for {gain:g} points at {shots} shots {likely} images likely, {safe} to be safe{why}")
    if told.accuracy is None:
        typer.echo("accuracy: nothing like this job was measured")
        return
    for few, low in told.accuracy.low.items():
        high, untrained = told.accuracy.high[few], told.accuracy.untrained[few]
        typer.echo(f"{few}-shot  {low} to {high} % (untrained {untrained} %)")
    typer.echo(f"as measured on {told.accuracy.measured_on}")


def _show_probe(probe: Probe) -> None:
    """What the APIs showed, a line each; what was charged."""
    from rich.console import Console
    from rich.table import Table

    typer.echo(f"probe   {probe.charged} images charged, {probe.unconfirmed} unconfirmed")
    table = Table("api", "classes", "decimals", "top-k", "same again", "batch", "seconds", "ended early", box=None)
    for api_id, api in probe.per_api.items():
        facts = (api.classes, api.decimals, api.top_k, api.deterministic, api.max_images, api.latency)
        table.add_row(api_id, *("" if fact is None else str(fact) for fact in facts), api.reason or "")
    Console().print(table)


@app.command("list")
@takes_server
def list_jobs(
    server: Server,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this in their name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs.")] = 20,
    after: Annotated[str | None, typer.Option(help="From the job after this one: `next` of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    with connected(server) as metazoo:
        page = metazoo.jobs.list(after=after, limit=limit, status=status, tag=tag, name=name)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Column, Table

    ids = (Column("job", no_wrap=True), Column("meta-model", overflow="fold"))  # to be copied: never cut
    table = Table(ids[0], "name", "status", "phase", "created", "images", ids[1], box=None)
    for job in page.items:
        images = f"{job.budget.confirmed + job.budget.unconfirmed}/{job.budget.limit}"
        created = f"{job.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(job.id, job.name or "", job.status, job.phase or "", created, images, job.meta_model or "")
    Console().print(table)
    if page.next is not None:
        typer.echo(f"more: metazoo jobs list --after {page.next}")


@app.command()
@takes_server
def show(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """A job as it is now."""
    with connected(server) as metazoo:
        job = metazoo.jobs.retrieve(named(metazoo.jobs, job_id))
    if as_json:
        typer.echo(job.model_dump_json())
        return
    from rich.console import Console

    from metazoo import watch as shown

    Console().print(shown.bars(job, most_apis=len(job.progress.per_api)))
    for name, api in job.progress.per_api.items():
        if api.reason is not None:
            typer.echo(f"{name} {api.url}: {api.reason}")
    if _ended(job):
        typer.echo(shown.result(job))


@app.command()
@takes_server
def watch(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Follow a job until it has ended: bars in a terminal, lines elsewhere, with --json one event a line.

    Exits with 1 if it failed or was cancelled.
    """
    with connected(server) as metazoo:
        _watch(metazoo.jobs.retrieve(named(metazoo.jobs, job_id)), as_json=as_json)


@app.command()
@takes_server
def cancel(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Stop a job; what it has paid for is kept."""
    with connected(server) as metazoo:
        tell(metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).cancel(), as_json)


@app.command()
@takes_server
def pause(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Let a job rest: requests under way are answered first, nothing new is sent."""
    with connected(server) as metazoo:
        tell(metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).pause(), as_json)


@app.command()
@takes_server
def resume(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Go on with a paused job, from its last answer or checkpoint."""
    with connected(server) as metazoo:
        tell(metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).resume(), as_json)


@app.command()
@takes_server
def retry(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Go on with a failed job: what it paid for is kept, APIs that were dropped are asked again."""
    with connected(server) as metazoo:
        tell(metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).retry(), as_json)


def tell(job: Job, as_json: bool) -> None:
    """The job's id and state, and why it is in it."""
    because = f": {job.reason}" if job.reason else ""
    typer.echo(job.model_dump_json() if as_json else f"{job.id} {job.status}{because}")


def _watch(job: "Handle", *, as_json: bool) -> None:
    """Show the job until it has ended, then leave with its exit code."""
    from rich.console import Console

    from metazoo import watch as shown

    try:
        if as_json:
            for event in job.stream():
                typer.echo(event.model_dump_json())
        else:
            shown.follow(job, Console())
    except KeyboardInterrupt:
        fail(f"stopped watching; the job goes on: metazoo jobs watch {job.id}, or metazoo jobs cancel {job.id}", 130)
    if not as_json:
        typer.echo(shown.result(job))
    if job.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(JOB_FAILED)


def _ended(job: Job) -> bool:
    return job.finished_at is not None


def _read_document(file: str) -> dict[str, Any]:
    try:
        document = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as error:
        fail(f"{file}: {error.strerror}", USAGE)
    except ValueError as error:
        fail(f"{file} is no JSON: {error}", USAGE)
    if not isinstance(document, dict):
        fail(f"{file} must hold a JSON object: a job with apis and budget", USAGE)
    return document


def _apis(urls: list[str], key_env: str | None, ready_file: Path | None, all_models: bool) -> list[dict[str, str]]:
    """The APIs asked for, each with its key: that of the ready file where it lists the API, else the one named."""
    if all_models and ready_file is None:
        fail("--all-models needs --ready-file: the models are listed there", USAGE)
    models = read_ready_file(ready_file)["models"] if ready_file is not None else []
    keys = {model["url"]: model["api_key"] for model in models}
    if key_env is not None:
        keys |= dict.fromkeys(urls, secret_from(key_env))
    wanted = list(dict.fromkeys([*urls, *(keys if all_models else ())]))
    return [{"url": url, "api_key": keys[url]} if url in keys else {"url": url} for url in wanted]


def _put(document: dict[str, Any], part: str, **given: Any) -> None:
    """Set the fields given in `part` of the document."""
    fields = {name: value for name, value in given.items() if value is not None}
    if fields:
        document[part] = {**(document.get(part) or {}), **fields}


def _options(given: list[str]) -> dict[str, Any]:
    """`steps=2000` as a field: values are JSON, and text where they are none."""
    options: dict[str, Any] = {}
    for each in given:
        name, separator, text = each.partition("=")
        if not separator or not name.isidentifier():
            fail(f"--option {each}: write it as NAME=VALUE, such as steps=2000", USAGE)
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options
