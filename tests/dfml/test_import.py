import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["dfml", "dfml.procedural", "dfml.plans", "dfml.sheets", "dfml.tasks"])
def test_acquiring_workers_need_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, dfml; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
