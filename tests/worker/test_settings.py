from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.app import create_app
from worker.settings import Settings

ENVIRONMENT = {
    "REDIS_URL": "redis://:hidden@127.0.0.1:1/0",
    "METAZOO_ARTIFACTS": "/artifacts",
    "METAZOO_SECRET_KEY": "hidden-too",
    "METAZOO_DATA": "/data",
    "METAZOO_ALLOW": "127.0.0.1:8001, Zoo.test:80",
}


def test_settings_come_from_the_environment_and_hide_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.allow == {"127.0.0.1:8001", "zoo.test:80"}
    assert settings.data == Path("/data")
    assert "hidden" not in repr(settings)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValidationError, match="METAZOO_SECRET_KEY"):
        Settings()


def test_the_app_has_the_settings_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    app = create_app(Settings())
    conf = app.conf
    assert (conf.worker_pool, conf.task_acks_late, conf.task_reject_on_worker_lost) == ("prefork", True, True)
    assert (conf.worker_prefetch_multiplier, conf.worker_soft_shutdown_timeout) == (1, 30)
    assert conf.accept_content == ["json"]
    assert conf.task_serializer == conf.result_serializer == "json"
    assert conf.visibility_timeout == conf.broker_transport_options["visibility_timeout"] == 43200
    assert conf.result_backend_transport_options["visibility_timeout"] == 43200
    assert {"worker.acquire_api", "worker.learn"} <= set(app.tasks)
