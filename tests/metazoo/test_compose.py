"""docker-compose.yml and deploy/kubernetes against the code: commands parse, settings exist, health checks name real routes.

`compose_spec.json` is the Compose specification's schema as docker-compose 1.29.2 brings it (Apache-2.0).
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import typer
import yaml
from click.testing import CliRunner

from metazoo import tracing
from metazoo.cli import app

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ARTIFACT_STORE = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FSSPEC_S3_ENDPOINT_URL"}  # read by s3fs
KUBERNETES: list[dict[str, Any]] = [
    document
    for file in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
DEPLOYED = {one["metadata"]["name"]: one for one in KUBERNETES if one["kind"] == "Deployment"}
PORTS = {"zoo": (8001, "/v2/health/ready"), "server": (8000, "/health/ready")}
OURS = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "metazoo"}


def settings_of(service: str) -> type:
    if service == "zoo":
        from api_zoo.settings import Settings
    elif service == "server":
        from meta_server.settings import Settings  # type: ignore[assignment]
    else:
        from worker.settings import Settings  # type: ignore[assignment]
    return Settings


def aliases(settings: Any) -> dict[str, bool]:
    """Environment variable -> whether it must be set."""
    return {str(field.validation_alias): field.is_required() for field in settings.model_fields.values()}


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_that_the_program_has(name: str) -> None:
    command = typer.main.get_command(app)
    shown = CliRunner().invoke(command, [*OURS[name]["command"], "--help"])
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("name", OURS)
def test_its_environment_is_what_the_settings_read(name: str) -> None:
    given, read = set(OURS[name]["environment"]), aliases(settings_of(name))
    traces = {variable for variable in given if variable.startswith("OTEL_")}
    assert set(tracing.ENDPOINTS) <= traces
    assert {OURS[name]["environment"][variable] for variable in traces} == {None}  # as the shell has it, or not at all
    assert given - ARTIFACT_STORE - traces <= set(read)
    by_argument = {"METAZOO_ZOO_FOLDER"}
    assert {variable for variable, required in read.items() if required} <= given | by_argument


def test_secrets_have_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for variable, default in re.findall(r"[^$]\$\{(\w*(?:KEY|PASSWORD))(.{0,3})", text):
        # one that a profile alone needs is asked for by that service, as Compose reads the whole file for any
        assert default.startswith(":?") or (default == ":-}" and f":?set {variable}}}" in text), variable


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for name in ("zoo", "server", "acquire"):
        for variable in aliases(settings_of(name)):
            assert f"`{variable}`" in page, variable


def test_it_obeys_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).parent / "compose_spec.json").read_text())
    known = {part: value for part, value in COMPOSE.items() if part != "name"}  # which came after this schema
    assert [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(known)] == []
    assert not jsonschema_rs.validator_for(schema).is_valid(known | {"services": {"redis": {"imagee": "x"}}})


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not here")
def test_docker_compose_reads_it() -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    names = re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text())
    done = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--quiet"],
        cwd=ROOT, env=dict.fromkeys(names, "x"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_locked_down_and_comes_back(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    if name in OURS:
        assert "\nUSER metazoo\n" in (ROOT / "Dockerfile").read_text()
    else:
        assert not str(service["user"]).startswith(("0", "root"))


@pytest.mark.parametrize("name", PORTS)
def test_ports_and_health_are_those_that_the_processes_have(name: str) -> None:
    port, path = PORTS[name]
    service = OURS[name]
    assert service["command"][-2:] == ["--port", str(port)]
    assert f"'http://127.0.0.1:{port}{path}'" in service["healthcheck"]["test"][-1]
    assert service["ports"] == [f"{port}:{port}"]
    assert f'_url}}{path}"' in (ROOT / "metazoo" / "stack.py").read_text()  # as `metazoo up` and its tests wait for it


def test_redis_is_durable_in_compose_as_it_is_embedded() -> None:
    command = COMPOSE["services"]["redis"]["command"][-1]
    source = (ROOT / "metazoo" / "redis_server.py").read_text()
    for line in ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction"):
        assert line in command
        assert line in source


def test_the_same_processes_run_on_kubernetes() -> None:
    assert set(DEPLOYED) == {"zoo", "server", "acquire", "learn"}
    settings = {one["metadata"]["name"]: one["data"] for one in KUBERNETES if one["kind"] == "ConfigMap"}["metazoo"]
    for name, deployment in DEPLOYED.items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["args"] == OURS[name]["command"]
        given = {one["name"] for one in container["env"]} | set(settings)
        required = {variable for variable, needed in aliases(settings_of(name)).items() if needed}
        assert required <= given | {"METAZOO_ZOO_FOLDER"}
        secret = {one["name"] for one in container["env"] if "secretKeyRef" in one.get("valueFrom", {})}
        assert {one for one in given if re.search("KEY|REDIS_URL", one)} == secret
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        if name in PORTS:
            port, path = PORTS[name]
            assert container["ports"] == [{"name": "http", "containerPort": port}]
            assert container["readinessProbe"]["httpGet"] == {"path": path, "port": "http"}
        else:
            assert pod["terminationGracePeriodSeconds"] >= 40  # longer than a worker's soft shutdown


def test_kustomize_lists_every_manifest() -> None:
    listed = next(one for one in KUBERNETES if one["kind"] == "Kustomization")["resources"]
    there = {file.name for file in (ROOT / "deploy" / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == there


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    sources = "".join(
        path.read_text() for folder in ("edge", "meta_server", "worker") for path in (ROOT / folder).rglob("*.py")
    )
    panels = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"metazoo_[a-z_]+", target["expr"])
    }
    assert len(asked) > 5
    assert [name for name in asked if f'"{re.sub("_(total|bucket)$", "", name)}"' not in sources] == []
