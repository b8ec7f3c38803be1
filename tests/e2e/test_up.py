"""`metazoo up` as a process: it starts all, restarts none silently, and leaves nothing behind."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

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


def test_a_part_that_dies_is_reported_and_not_restarted(start_up, tmp_path: Path) -> None:
    up = start_up(tmp_path)
    processes = family(up.process.pid)
    psutil.Process(up.ready["pids"]["zoo"]).send_signal(signal.SIGKILL)
    output, _ = up.process.communicate(timeout=90)
    assert up.process.returncode == 1
    assert "zoo ended by itself" in output
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
