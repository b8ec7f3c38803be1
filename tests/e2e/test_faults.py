"""Real processes that are killed, connections that are cut, and an audit that finds a defect when there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WRONG = ("lost_answers", "double_charged", "overspent", "stuck", "complaints")


def bench(zoo_folder: Path, folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, last line and everything else that `scripts/bench faults` tells of a short run."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--zoo", str(zoo_folder), "--folder", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_whatever_is_killed_nothing_is_lost_and_nothing_overspent(zoo_folder: Path, tmp_path: Path) -> None:
    options = ["--jobs", "3", "--faults", "6", "--every", "2", "--lease", "6", "--seed", "3", "--minutes", "5"]
    status, told, said = bench(zoo_folder, tmp_path, *options, "--queries", "120", "--rate", "20")
    assert told["faults"] == 6, said
    assert {name: told[name] for name in WRONG} == dict.fromkeys(WRONG, 0), said
    assert told["unconfirmed"] == 0
    assert told["succeeded"] == told["jobs"] >= 3, said
    assert status == 0


def test_the_audit_sees_settles_that_are_skipped_charges_that_are_doubled_and_holds_too_small(
    zoo_folder: Path, tmp_path: Path
) -> None:
    options = ["--jobs", "1", "--faults", "0", "--lease", "6", "--defect", "settle,twice,hold", "--minutes", "5"]
    status, told, said = bench(zoo_folder, tmp_path, *options, "--queries", "120", "--rate", "40")
    assert all(told[name] > 0 for name in ("lost_answers", "double_charged", "overspent", "complaints")), said
    assert status == 1
