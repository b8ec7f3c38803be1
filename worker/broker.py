"""Celery's way to Redis: whose turn it is, and what is mended where it would end a worker.

When the connection is lost while tasks run, kombu 5.7 goes on to use the connection that it has just taken apart, to put the
tasks' messages back or to acknowledge them, and the worker dies of an AttributeError. Here those messages stay where they are:
their tasks go on under their leases, and the reaper sends again what has lost its holder.
"""

from collections.abc import Iterable
from typing import Any

from kombu.transport import redis
from kombu.utils.scheduling import round_robin_cycle


class Turns(round_robin_cycle):
    """The order in which queues are looked at: groups by turns, and within a group its lanes by turns.

    The group of a queue is its name up to the last dot: see `meta_server.queue`.
    """

    def update(self, it: Iterable[str]) -> None:
        """These are all queues."""
        self.items[:] = sorted(it, key=_group)

    def rotate(self, last_used: str) -> str:
        """A message was taken from this one: it is the last of its group now, and its group the last of all."""
        if last_used in self.items:
            group = _group(last_used)
            self.items.sort(key=lambda queue: (_group(queue) == group, queue == last_used))
        return last_used


def _group(queue: str) -> str:
    return queue.rpartition(".")[0]


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
