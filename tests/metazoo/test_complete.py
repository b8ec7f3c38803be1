"""The command offers all that both services do: a route that no command leads to is a fault."""

from pathlib import Path

import pytest
import typer

from metazoo.cli import app

REST = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
METERED = "adapted predict"  # by the Open Inference Protocol, as below /v2 of a zoo
SERVER = {
    "POST /v1/jobs": "jobs submit",
    "GET /v1/jobs": "jobs list",
    "POST /v1/jobs/estimate": "jobs estimate",
    "GET /v1/jobs/{job_id}": "jobs show",
    "PATCH /v1/jobs/{job_id}": "jobs change",
    "DELETE /v1/jobs/{job_id}": "jobs delete",
    "POST /v1/jobs/{job_id}/cancel": "jobs cancel",
    "POST /v1/jobs/{job_id}/pause": "jobs pause",
    "POST /v1/jobs/{job_id}/resume": "jobs resume",
    "POST /v1/jobs/{job_id}/retry": "jobs retry",
    "GET /v1/jobs/{job_id}/events": "jobs events",
    "GET /v1/jobs/{job_id}/budget": "jobs show",
    "GET /v1/jobs/{job_id}/metrics": "jobs metrics",
    "GET /v1/jobs/{job_id}/answers": "jobs answers",
    "GET /v1/jobs/{job_id}/answers/{name}": "jobs answers",
    "GET /v1/jobs/{job_id}/images": "jobs images",
    "GET /v1/meta-models": "models list",
    "POST /v1/meta-models/compare": "models compare",
    "GET /v1/meta-models/{meta_model_id}": "models show",
    "PATCH /v1/meta-models/{meta_model_id}": "models edit",
    "DELETE /v1/meta-models/{meta_model_id}": "models delete",
    "POST /v1/meta-models/{meta_model_id}/restore": "models restore",
    "GET /v1/meta-models/{meta_model_id}/archive": "models export",
    "GET /v1/meta-models/{meta_model_id}/files/{name}": "models download",
    "POST /v1/meta-models/{meta_model_id}/predict": "models predict",
    "POST /v1/meta-models/{meta_model_id}/adapt": "models adapt",
    "POST /v1/image-sets": "images upload",
    "GET /v1/image-sets": "images list",
    "GET /v1/image-sets/{image_set}": "images list",
    "DELETE /v1/image-sets/{image_set}": "images delete",
    "GET /v1/adapted-models": "adapted list",
    "GET /v1/adapted-models/{adapted_id}": "adapted show",
    "DELETE /v1/adapted-models/{adapted_id}": "adapted delete",
    "GET /v1/adapted-models/{adapted_id}/files/{name}": "adapted download",
    "GET /admin/keys": "server keys list",
    "POST /admin/keys": "server keys create",
    "DELETE /admin/keys/{key_id}": "server keys revoke",
    "GET /admin/tenants/{tenant}": "server quota",
    "PUT /admin/tenants/{tenant}/quota": "server quota",
    "GET /admin/audit": "server audit",
    "GET /health/live": "doctor",
    "GET /health/ready": "doctor",
    "POST /v2/models/{model}/infer": METERED,
    "GET /v2": METERED,
    "GET /v2/health/live": METERED,
    "GET /v2/health/ready": METERED,
    "POST /v2/repository/index": METERED,
    "GET /v2/models/{model}": METERED,
    "GET /v2/models/{model}/ready": METERED,
    "POST /v1/models/{model}/classify": METERED,
}
ZOO = {
    "POST /v2/models/{model}/infer": "zoo predict",
    "GET /v2": "doctor",
    "GET /v2/health/live": "doctor",
    "GET /v2/health/ready": "doctor",
    "POST /v2/repository/index": "zoo models",
    "GET /v2/models/{model}": "zoo predict",
    "GET /v2/models/{model}/ready": "zoo models",
    "POST /v1/models/{model}/classify": "zoo predict",
    "GET /v1/models/{model}/weights": "jobs submit",  # --access weights
    "GET /v1/usage": "zoo usage",
    "GET /admin/keys": "zoo keys list",
    "POST /admin/keys": "zoo keys create",
    "GET /admin/keys/{key_id}": "zoo keys show",
    "DELETE /admin/keys/{key_id}": "zoo keys revoke",
    "GET /admin/keys/{key_id}/usage": "zoo keys usage",
    "POST /admin/keys/{key_id}/top-up": "zoo keys top-up",
    "GET /admin/keys/{key_id}/audit": "zoo keys audit",
}


@pytest.mark.parametrize(("service", "led"), [("Meta server", SERVER), ("API zoo", ZOO)])
def test_a_command_leads_to_every_route(service: str, led: dict[str, str]) -> None:
    part = REST.split(f"\n## {service}\n")[1].split("\n## ")[0]
    assert {line[5:-1] for line in part.splitlines() if line.startswith("### `")} == set(led)
    for path in led.values():
        command = typer.main.get_command(app)
        for name in path.split():
            command = command.commands[name]
