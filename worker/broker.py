"""Celery's way to Redis, mended where it would end a worker.

When the connection is lost while tasks run, kombu 5.7 goes on to use the connection that it has just taken apart, to put the
tasks' messages back or to acknowledge them, and the worker dies of an AttributeError. Here those messages stay where they are:
their tasks go on under their leases, and the reaper sends again what has lost its holder.
"""

from typing import Any

from kombu.transport import redis


class QoS(redis.QoS):
    """Which messages were delivered and not acknowledged."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, if there is a connection to do it over."""
        if not self._forgotten(delivery_tag):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back or drop it, if there is a connection to do it over."""
        if not self._forgotten(delivery_tag):
            super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> Any:
        """Put all back, if there is a connection to do it over."""
        if self._is_cut_off:
            self._delivered.clear()  # type: ignore[attr-defined]
            return None
        return super().restore_unacked(client)

    @property
    def _is_cut_off(self) -> bool:
        return self.channel.connection is None or self.channel.connection.client is None

    def _forgotten(self, delivery_tag: str) -> bool:
        if self._is_cut_off:
            self._delivered.pop(delivery_tag, None)  # type: ignore[attr-defined]
        return self._is_cut_off


class Channel(redis.Channel):
    """With that `QoS`."""

    QoS = QoS


class Transport(redis.Transport):
    """With that `Channel`."""

    Channel = Channel
