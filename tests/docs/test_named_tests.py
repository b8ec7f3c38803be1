"""Pages that promise something name the test that holds it, and those tests exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEFINED = {
    name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
}


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_row_names_a_test_that_exists(page: str) -> None:
    lines = (ROOT / "docs" / page).read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not re.match(r"\| (fault|threat|---)", line)]
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, f"no test is named: {row}"
        assert set(named) <= DEFINED, f"no such test: {set(named) - DEFINED}"
