"""What stays loaded: no more than the bytes allowed, the oldest goes, each thing is loaded once."""

import anyio
import pytest

from meta_server.serving.memory import Memory

pytestmark = pytest.mark.anyio


def loading(loads: list[str], name: str, size: int):
    async def load() -> tuple[str, int]:
        loads.append(name)
        await anyio.lowlevel.checkpoint()
        return name.upper(), size

    return load


async def test_bytes_decide_and_the_oldest_goes() -> None:
    memory, loads = Memory(10), []
    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4)):
        assert await memory.get(name, loading(loads, name, size)) == name.upper()
    assert loads == ["a", "b", "c"]
    assert [name in memory for name in "abc"] == [True, False, True]
    memory.touch("a")
    await memory.get("d", loading(loads, "d", 3))
    assert [name in memory for name in "acd"] == [True, False, True]
    assert memory.bytes == 7
    await memory.get("huge", loading(loads, "huge", 100))
    assert ("huge" in memory, memory.bytes) == (True, 100)
    memory.drop("huge")
    memory.drop("huge")
    assert memory.bytes == 0


async def test_it_is_loaded_once_for_all_and_again_after_a_failure() -> None:
    memory, loads = Memory(10), []

    async def fail() -> tuple[str, int]:
        loads.append("failed")
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError):
        await memory.get("a", fail)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(memory.get, "a", loading(loads, "a", 1))
    assert loads == ["failed", "a"]
