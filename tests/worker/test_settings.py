from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Producer, Queue
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
    assert conf.broker_transport == "worker.broker:Transport"
    assert conf.task_serializer == conf.result_serializer == "json"
    assert conf.visibility_timeout == conf.broker_transport_options["visibility_timeout"] == 43200
    assert conf.result_backend_transport_options["visibility_timeout"] == 43200
    assert {"worker.acquire_api", "worker.learn"} <= set(app.tasks)


def consume(redis_url: str, transport: Any) -> None:
    """Take a message, lose the connection, end the channel: what Celery does when Redis goes away."""
    with Connection(redis_url, transport=transport) as connection:
        channel = connection.channel()
        queue = Queue("test", channel=channel)
        queue.declare()
        Producer(channel).publish({"id": 1}, routing_key="test")
        message = queue.get(no_ack=False)
        assert message is not None
        channel._disconnect_pools()
        channel.connection.client = None
        message.ack()
        channel.close()


@pytest.mark.redis
def test_a_worker_whose_connection_to_redis_was_lost_forgets_its_messages_instead_of_dying(
    redis_url: str,
) -> None:
    from worker.broker import Transport

    with pytest.raises(AttributeError):  # when this fails, kombu was mended and worker/broker.py can go
        consume(redis_url, "redis")
    consume(redis_url, Transport)
