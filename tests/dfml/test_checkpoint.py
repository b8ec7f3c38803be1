"""A training's state as bytes: what comes back is what was kept, and nothing altered is used."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfml.checkpoint import BadState, CheckpointFile, decode, encode
from dfml.training import Training

PICKLE = b"\x80\x04\x95\r\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x04done\x94K\x03s."  # {"done": 3}
TENSORS = st.sampled_from(
    [
        torch.tensor(0.1),
        torch.tensor([[math.nan, -0.0], [math.inf, 3e-45]]),
        torch.empty(0, 3),
        torch.arange(6, dtype=torch.uint8).view(2, 3).T,  # not contiguous
        torch.tensor([True, False]),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.tensor([2**62], dtype=torch.int64),
    ]
)
KEYS = st.text(max_size=4) | st.integers() | st.tuples(st.integers(0, 9), st.integers(0, 9))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | TENSORS
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and _bytes(one) == _bytes(two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and repr(one) == repr(two)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@settings(max_examples=50, deadline=None)
@given(tree=TREES)
def test_what_comes_back_is_what_was_kept(tree: Any) -> None:
    assert same(decode(encode(tree)), tree)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_bytes_that_were_altered_are_refused_or_mean_the_same(data: st.DataObject) -> None:
    tree = {"steps": 3, "weights": torch.arange(5.0), "lr": 0.1}
    content = bytearray(encode(tree))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        got = decode(bytes(content))
    except BadState:
        return
    assert same(got, tree)


@pytest.mark.parametrize("content", [b"", b"nothing", PICKLE, encode({"done": 1})[:-1], encode([])])
def test_what_is_no_state_is_refused_with_a_reason_and_the_training_begins_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    file = CheckpointFile(path)
    assert Training(file, ["a"]).done == 0
    assert file.refused is not None


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    made = Training(CheckpointFile(path, every=1), ["a"], [torch.arange(3)])
    made.resume(torch.Generator())
    made.keep(7, loss=0.5)
    again = Training(file := CheckpointFile(path), ["a"], [torch.arange(3)])
    assert (again.done, again.values, file.refused) == (7, {"loss": 0.5}, None)
    for told, tensor in ((["b"], torch.arange(3)), (["a"], torch.arange(3.0)), (["a"], torch.arange(4))):
        other = Training(file := CheckpointFile(path), told, [tensor])
        assert (other.done, other.values) == (0, {})
        assert "another training" in str(file.refused)


def test_what_json_and_tensors_cannot_hold_is_not_kept() -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        encode({"code": print})
