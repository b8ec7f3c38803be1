"""A data directory's ports stay, unless somebody else has them."""

import socket
import threading
from pathlib import Path

from metazoo.ports import kept_ports


def test_a_later_run_has_the_same_ports(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = kept_ports(file, ["zoo", "server"])
    assert len(set(first)) == 2
    assert kept_ports(file, ["server", "zoo"]) == first[::-1]
    assert kept_ports(file, ["zoo", "other"])[0] == first[0]


def test_a_port_that_is_taken_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    (port,) = kept_ports(file, ["zoo"])
    with socket.create_server(("127.0.0.1", port)) as run_before:
        threading.Timer(0.3, run_before.close).start()
        assert kept_ports(file, ["zoo"], patience=60) == [port]
    with socket.create_server(("127.0.0.1", port)):
        (other,) = kept_ports(file, ["zoo"], patience=0)
    assert other != port
    assert kept_ports(file, ["zoo"]) == [other]
