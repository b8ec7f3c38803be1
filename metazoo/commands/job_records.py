"""`metazoo jobs`: change what is known of a job, take home what it came to."""

from pathlib import Path
from typing import Annotated, Any

import typer

from metazoo.commands.jobs import JobId, tell
from metazoo.connection import USAGE, AsJson, Server, connected, fail, takes_server
from metazoo.latest import named

app = typer.Typer()


@app.command()
@takes_server
def change(
    server: Server,
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="A name to find it by.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="In place of the tags it has. Repeatable.")] = None,
    notes: Annotated[str | None, typer.Option(help="In place of the notes it has.")] = None,
    queries: Annotated[int | None, typer.Option(help="Raise the budget to so many images over all APIs.")] = None,
    queries_per_api: Annotated[int | None, typer.Option(help="Raise the limit of images for any one API.")] = None,
    cost: Annotated[str | None, typer.Option(help="Raise the limit of money over all APIs.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Raise the limit of seconds of work.")] = None,
    as_json: AsJson = False,
) -> None:
    """Name, tag or annotate a job, or raise its budget: that counts from when work is next begun."""
    limits = {"queries": queries, "queries_per_api": queries_per_api, "cost": cost, "seconds": seconds}
    budget = {limit: value for limit, value in limits.items() if value is not None}
    given: dict[str, Any] = {"name": name, "tags": tag, "notes": notes, "budget": budget or None}
    changed = {field: value for field, value in given.items() if value is not None}
    if not changed:
        fail("say what to change, such as --queries 20000: metazoo jobs change --help", USAGE)
    with connected(server) as metazoo:
        tell(metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).change(**changed), as_json)


@app.command()
@takes_server
def delete(
    server: Server,
    job_id: JobId,
) -> None:
    """Delete a job that has ended, with its answers and checkpoints; its meta-model stays."""
    with connected(server) as metazoo:
        job = metazoo.jobs.retrieve(named(metazoo.jobs, job_id))
        job.delete()
    typer.echo(f"{job.id} deleted")


@app.command()
@takes_server
def events(
    server: Server,
    job_id: JobId,
    after: Annotated[str | None, typer.Option(help="The id of the last event seen.")] = None,
    as_json: AsJson = False,
) -> None:
    """What has happened so far; `watch` goes on."""
    from metazoo.watch import line

    with connected(server) as metazoo:
        for event in metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).events(after=after):
            if said := event.model_dump_json() if as_json else line(event):
                typer.echo(said)


@app.command()
@takes_server
def metrics(
    server: Server,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Training metrics over time, one step a line."""
    with connected(server) as metazoo:
        for point in metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).history():
            values = " ".join(f"{name}={value:.5g}" for name, value in sorted(point.values.items()))
            typer.echo(point.model_dump_json() if as_json else f"{point.time:%H:%M:%S} {point.step} {values}")


@app.command()
@takes_server
def answers(
    server: Server,
    job_id: JobId,
    to: Annotated[Path | None, typer.Option(help="Download each into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was paid for: every chunk of images that an API answered."""
    with connected(server) as metazoo:
        if to is not None:
            to.mkdir(parents=True, exist_ok=True)
        job = metazoo.jobs.retrieve(named(metazoo.jobs, job_id))
        for answer in job.answers():
            if to is not None:
                job.download_answer(answer.name, to / f"{answer.name}.safetensors")
            typer.echo(answer.model_dump_json() if as_json else f"{answer.name} {answer.images} images")


@app.command()
@takes_server
def images(
    server: Server,
    job_id: JobId,
    file: Annotated[Path, typer.Argument(help="The PNG file to write.")],
    count: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 32,
) -> None:
    """The first images that the job asks its APIs about, on one sheet."""
    with connected(server) as metazoo:
        metazoo.jobs.retrieve(named(metazoo.jobs, job_id)).download_images(file, count=count)
    typer.echo(str(file))
