"""`metazoo up` as a process: it starts all, starts again what dies and says so, and leaves nothing behind."""

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from client import Metazoo
from client.errors import ApiUnavailable
from metazoo import stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_it_stops_everything_it_started(start_up, run, tmp_path: Path) -> None:
    up = start_up(tmp_path)
    processes = family(up.process.pid)
    assert {"redis", "zoo", "server", "acquire", "learn"} == set(up.ready["pids"])
    shell_file = up.ready_file.with_suffix(".env")
    assert shell_file.stat().st_mode & 0o077 == 0
    show = f'source "{shell_file}" && echo $METAZOO_URL $METAZOO_API_KEY $METAZOO_ZOO_URL $METAZOO_READY_FILE'
    told = subprocess.run(["bash", "-euc", show], capture_output=True, text=True, check=True).stdout.split()
    assert told == [up.ready["server_url"], up.ready["api_key"], up.ready["zoo_url"], str(up.ready_file)]
    second = run("up", "--data-dir", str(tmp_path / "data"), "--zoo", str(tmp_path))
    assert second.returncode == 1
    assert "another" in second.stderr
    up.stop()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert not up.ready_file.exists()
    assert not shell_file.exists()


def test_a_later_run_takes_the_zoo_key_of_the_one_before(up, tmp_path: Path) -> None:
    private = tmp_path / "secrets.json"
    private.write_text(json.dumps({"zoo_admin_key": up.ready["zoo_admin_key"]}))

    def key() -> str:
        """What a run with these secrets would use."""
        models = stack.models(up.ready["zoo_url"], json.loads(private.read_text()), private)
        assert [model["name"] for model in models] == [model["name"] for model in up.ready["models"]]
        return models[0]["api_key"]

    first = key()
    assert key() == first
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    admin = {"Authorization": f"Bearer {up.ready['zoo_admin_key']}"}
    url = f"{up.ready['zoo_url']}/admin/keys/{first.split('_')[1]}"
    httpx.delete(url, headers=admin).raise_for_status()
    second = key()
    assert second != first
    assert key() == second


def test_a_part_that_is_killed_is_started_again_and_said_to_be(start_up, tmp_path: Path) -> None:
    up = start_up(tmp_path)
    for name, pid in up.ready["pids"].items():
        psutil.Process(pid).send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 60
        while json.loads(up.ready_file.read_text())["pids"][name] == pid:
            assert time.monotonic() < deadline, name
            time.sleep(0.05)
    job = {"apis": up.apis[:2], "budget": {"queries": 64}, "method": {"name": "pqd", "steps": 4, "batch": 8}}
    deadline = time.monotonic() + 120
    with Metazoo(up.ready["server_url"], up.ready["api_key"]) as metazoo:
        while True:
            try:
                ended = metazoo.jobs.create(job, idempotency_key="once").wait(timeout=120)
                break
            except ApiUnavailable:  # the server is still starting
                assert time.monotonic() < deadline
                time.sleep(0.1)
    assert (ended.status, ended.budget.confirmed) == ("succeeded", 64)
    processes = family(up.process.pid)
    output = up.stop()
    for name in up.ready["pids"]:
        assert f"{name} was killed by signal 9 and is started again" in output
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
def test_killing_it_leaves_no_orphan(start_up, tmp_path: Path) -> None:
    up = start_up(tmp_path)
    processes = family(up.process.pid)
    up.process.kill()
    up.process.communicate()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def test_an_empty_zoo_folder_is_refused_with_a_reason(run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("up", "--zoo", str(tmp_path / "empty"), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "manifest.json" in done.stderr
