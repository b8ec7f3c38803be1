"""A job as a person sees it: bars in a terminal, lines elsewhere."""

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from contracts.job_records import Event
from contracts.jobs import ApiProgress, Job, JobStatus, Phase

if TYPE_CHECKING:
    from client import Job as Handle

REFRESH = 0.5  # seconds between two looks at a job while its bars are shown
METRICS_LINES = 5.0  # seconds between two lines of training metrics
_COLOURS = {JobStatus.SUCCEEDED: "green", JobStatus.FAILED: "red", JobStatus.CANCELLED: "yellow"}
_RANK = {"acquiring": 0, "probing": 1, "dropped": 2, "waiting": 3, "done": 4}


def follow(job: "Handle", console: Console) -> None:
    """Show the job until it has ended: bars in a terminal, lines elsewhere."""
    if console.is_terminal:
        _follow_with_bars(job, console)
    else:
        _follow_with_lines(job, console)


def _follow_with_bars(job: "Handle", console: Console) -> None:
    room = max(3, console.height - 12)
    with Live(bars(job, most_apis=room), console=console, auto_refresh=False) as live:
        looked = time.monotonic()
        for event in job.stream():
            if event.type == "warning" and (said := line(event)):
                console.print(said, markup=False)
            if event.type == "status" or time.monotonic() - looked >= REFRESH:
                live.update(bars(job.refresh(), most_apis=room), refresh=True)
                looked = time.monotonic()


def _follow_with_lines(job: "Handle", console: Console) -> None:
    told = float("-inf")
    for event in job.stream():
        if event.type == "metrics":
            if time.monotonic() - told < METRICS_LINES:
                continue
            told = time.monotonic()
        if said := line(event):
            console.print(said, markup=False, highlight=False, soft_wrap=True)


def line(event: Event) -> str | None:
    """An event as one line of text; None for those that only move a bar."""
    data = event.data
    match event.type:
        case "status":
            said = f"{data.get('status')}" + (f": {data['reason']}" if data.get("reason") else "")
        case "phase":
            said = f"phase {data.get('phase')}"
        case "api":
            said = f"{data.get('api')} {data.get('state')}" + (f": {data['reason']}" if data.get("reason") else "")
        case "warning":
            said = "warning: " + (f"{data['api']}: " if data.get("api") else "") + f"{data.get('message')}"
        case "published":
            said = f"meta-model {data.get('meta_model')}"
        case "metrics" if data.get("steps"):
            values = (f"{name} {value:.4g}" for name, value in data.items() if isinstance(value, float))
            said = f"step {data.get('step')} of {data['steps']}: {', '.join(values)}"
        case _:
            return None
    return f"{event.time:%H:%M:%S} {said}"


def bars(job: Job, *, most_apis: int) -> RenderableType:
    """A bar for each phase, one for the budget and one for each API; at most `most_apis` of these, busy ones first."""
    table = Table.grid(padding=(0, 1))
    for phase in Phase:
        done = job.progress.phase.get(phase, 0.0)
        seconds = f"{job.seconds[phase]:.1f} s" if phase in job.seconds else ""
        table.add_row(
            phase.replace("_", "-"), ProgressBar(total=1.0, completed=done, width=40), f"{done:4.0%}", seconds
        )
    spent = job.budget.confirmed + job.budget.unconfirmed
    images = f"{spent} of {job.budget.limit} images"
    if (cost := job.budget.cost) is not None:
        images += f", {cost.confirmed} {cost.currency}" + (f" of {cost.limit}" if cost.limit else "")
    table.add_row("budget", ProgressBar(total=job.budget.limit, completed=spent, width=40), "", images)
    table.add_row("", "", "", "")
    apis = sorted(job.progress.per_api.items(), key=lambda item: _RANK[item[1].state])
    for name, api in apis[:most_apis]:
        table.add_row(Text(name), _api_bar(api), f"{api.answered}/{api.planned}", _api_text(job, api))
    parts: list[RenderableType] = [headline(job), table]
    if len(apis) > most_apis:
        parts.append(Text(f"and {len(apis) - most_apis} more APIs", style="dim"))
    return Group(*parts)


def headline(job: Job) -> Text:
    """Id, name, state, and the newest metrics."""
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in sorted(job.metrics.items()))
    return Text.assemble(
        (job.id, "bold"), f" {job.name or ''} ", (job.status, _COLOURS.get(job.status, "cyan")), f"  {metrics}"
    )


def result(job: Job) -> str:
    """How a job ended, in a few lines, with what to do next."""
    spent = f"{job.budget.confirmed + job.budget.unconfirmed} of {job.budget.limit} images spent"
    if job.error is not None:
        return f"{job.id} {job.status}: {job.error.message} ({job.error.code}); {spent}"
    if job.meta_model is None:
        return f"{job.id} {job.status}" + (f": {job.reason}" if job.reason else "") + f"; {spent}"
    lines = [f"{job.id} {job.status}: meta-model {job.meta_model}; {spent}"]
    if job.score is not None:
        for shots, accuracy in job.score.accuracy.items():
            beside = ""
            if job.random_score is not None and shots in job.random_score.accuracy:
                beside = f" (untrained: {job.random_score.accuracy[shots]:.1f} %)"
            lines.append(f"{shots}-shot accuracy {accuracy:.1f} ± {job.score.interval[shots]:.1f} %{beside}")
    return "\n".join(
        [*lines, f"next: metazoo models predict {job.meta_model} IMAGE… --support FOLDER (a folder of images a class)"]
    )


def _api_bar(api: ApiProgress) -> ProgressBar:
    style = "red" if api.state == "dropped" else "bar.complete"
    return ProgressBar(total=max(api.planned, 1), completed=api.answered, width=40, complete_style=style)


def _api_text(job: Job, api: ApiProgress) -> Text:
    model = api.url.rpartition("/")[2]
    replaced = job.replaced(api)
    instead = "" if replaced is None else f" in the place of {replaced.url.rpartition('/')[2]}"
    return Text(
        f"{job.told_state(api)} {model}{instead}" + (f": {api.reason}" if api.reason else ""),
        style="dim",
        overflow="ellipsis",
        no_wrap=True,
    )
