"""What `metazoo up` does about parts that end, without starting any of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from metazoo import stack
from metazoo.children import Child
from metazoo.stack import Ready, Stack, StackError


@pytest.fixture
def one(tmp_path: Path) -> Stack:
    """A stack of a zoo alone, which ends with status 3 as soon as it is started and says why."""
    made = Stack(tmp_path, tmp_path)
    made.ready = Ready("", "", "", "", "", [], {})
    (tmp_path / "logs").mkdir()
    made.log_of("zoo").write_text("no such teacher\n")

    def start() -> None:
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], start_new_session=True)
        made._children["zoo"] = Child("zoo", process)
        process.wait()

    made._starts["zoo"] = start
    start()
    return made


def test_a_part_that_ends_again_and_again_ends_all_with_its_last_words(
    one: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "RESTARTS", 2)
    for _ in range(2):
        assert one.revive() == "zoo ended by itself"
        assert one.ready.pids == {"zoo": one._children["zoo"].process.pid}
    with pytest.raises(StackError, match="as it did 2 times in the 60 s before") as told:
        one.revive()
    assert str(told.value).endswith("no such teacher")


def test_one_that_ends_now_and_then_is_started_again_each_time(one: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "RESTARTS", 1)
    monkeypatch.setattr(stack, "WITHIN", 0.0)
    assert [one.revive() for _ in range(4)] == ["zoo ended by itself"] * 4
