"""JSON Pointer, by the examples of RFC 6901, section 5, and `*`."""

from typing import Any

import pytest

from contracts.json_pointer import NotThere, find, parse

DOCUMENT: dict[str, Any] = {
    **{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}
}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        *(("", DOCUMENT), ("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/c%d", 2)),
        *(("/e^f", 3), ("/g|h", 4), ("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8), ("/foo/*", ["bar", "baz"])),
    ],
)
def test_the_examples_of_the_standard(pointer: str, value: Any) -> None:
    assert find(DOCUMENT, parse(pointer)) == value


@pytest.mark.parametrize(
    "pointer", ["/foo/2", "/foo/-", "/foo/00", "/foo/-1", "/foo/²", "/bar", "/*", "/foo/0/0", "/foo/*/x"]
)
def test_what_is_not_there(pointer: str) -> None:
    with pytest.raises(NotThere):
        find(DOCUMENT, parse(pointer))


@pytest.mark.parametrize("pointer", ["foo", "/~", "/a~2", "#/foo"])
def test_what_is_no_pointer(pointer: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse(pointer)


def test_each_within_each_keeps_the_lists() -> None:
    assert find([[{"s": 1}, {"s": 2}], []], parse("/*/*/s")) == [[1, 2], []]
