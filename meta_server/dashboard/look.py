"""How pages are made: the templates, and numbers, times and states as people read them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from contracts.access import Role
from contracts.jobs import ENDED, ApiSpend, Job, Phase
from meta_server.session import Sessions

_HERE = Path(__file__).parent
STATIC = _HERE / "static"

PHASE_NAMES = {
    Phase.PROBE: "Probe",
    Phase.ACQUIRE: "Acquire",
    Phase.META_TRAIN: "Train",
    Phase.EVALUATE: "Evaluate",
    Phase.PUBLISH: "Publish",
}

JOB_MOVES = {
    "pause": {"label": "Pause", "states": ("queued", "running"), "confirm": False},
    "resume": {"label": "Resume", "states": ("paused",), "confirm": False},
    "retry": {"label": "Retry", "states": ("failed",), "confirm": False},
    "cancel": {"label": "Cancel", "states": ("queued", "running", "pausing", "paused"), "confirm": True},
}
"""What a person may do with a job, by the last part of its route, and in which states."""


def _digest(folder: Path) -> str:
    """Of every file's name and content: another set of files lies under another path, so browsers may keep each for good."""
    total = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return total.hexdigest()[:12]


STATIC_PATH = f"/static/{_digest(STATIC)}"


def page(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """The page that `template` makes of `values`."""
    caller = getattr(request.state, "caller", None)
    known = {
        "signed_in": caller is not None or _sessions(request).key(request) is not None,
        "may_change": caller is not None and caller.role is not Role.VIEWER,
        "may_administer": caller is not None and caller.role is Role.ADMIN,
    }
    made = _templates.get_template(template).render(request=request, **known, **values)
    return HTMLResponse(made, status, headers)


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def number(value: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,.0f}"


def percent(fraction: float) -> str:
    """0.256 -> 26 %, rounded down at the end so that only what is finished shows as 100 %."""
    return f"{min(99, round(fraction * 100)) if fraction < 1 else 100} %"


def duration(seconds: float) -> str:
    """75.2 -> 1 min 15 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def points(difference: float) -> str:
    """-1.94 -> −1.9."""
    return f"{difference:+.1f}".replace("-", "\u2212")


def ago(when: datetime) -> str:
    """The time since, in its largest unit."""
    seconds = (datetime.now(UTC) - when).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def until(when: datetime) -> str:
    """The time left, in its largest unit."""
    seconds = (when - datetime.now(UTC)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"in {int(seconds // length)} {unit}"
    return "in less than a minute"


def clock(when: datetime) -> str:
    """A time in full."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def query(parts: Mapping[str, object]) -> str:
    """What of `parts` is there, as the query of an address."""
    return urlencode({name: value for name, value in parts.items() if value})


def sentence(text: str) -> str:
    """First letter large, a full stop at the end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def code(text: str) -> Markup:
    """What is between backticks as code, as OpenAPI's texts mean it."""
    parts = [
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def ended(job: Job) -> bool:
    """Whether nothing more will happen to it."""
    return job.status in ENDED


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=number,
        percent=percent,
        duration=duration,
        ago=ago,
        clock=clock,
        points=points,
        until=until,
        query=query,
        code=code,
        sentence=sentence,
    )
    made.globals.update(
        static=STATIC_PATH,
        phases=PHASE_NAMES,
        moves=JOB_MOVES,
        nothing=ApiSpend(),
        ended=ended,
        charts=_has("plotly-basic.min.js"),
    )
    return made


def _has(library: str) -> bool:
    """Whether hatch_build.py could take it from npm."""
    return (STATIC / "vendor" / library).exists()


_templates = _environment()
