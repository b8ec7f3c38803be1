"""The scaling bench runs as documented, and its last line says what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.process, pytest.mark.timeout(200)]


def test_a_quick_run_uses_the_rate_and_asks_nothing_in_vain() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--quick"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=190,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    efficiency = json.loads(done.stdout.splitlines()[-1])["efficiency"]
    assert list(efficiency) == ["1x8"]
    assert 0 < efficiency["1x8"] <= 1
