"""The wire codec: what goes out comes back, and every fault of a hostile body is named."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import oip
from contracts.oip import InferResponse, InvalidPayload, Tensor

WIDTHS = {name: width for name, (_, width) in oip.DATATYPES.items()}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(sorted(WIDTHS)))
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)))
    count = 1
    for size in shape:
        count *= size
    if datatype in {"FP32", "FP64"}:
        code = "f" if datatype == "FP32" else "d"
        values = draw(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=count, max_size=count))
        data = struct.pack(f"<{count}{code}", *values)
    elif datatype == "BOOL":
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        data = draw(st.binary(min_size=count * WIDTHS[datatype], max_size=count * WIDTHS[datatype]))
    return Tensor(draw(st.sampled_from(["images", "x", "naïve"])), datatype, shape, data)


def same(left: Tensor, right: Tensor) -> bool:
    return (left.name, left.datatype, left.shape, bytes(left.data)) == (
        right.name,
        right.datatype,
        right.shape,
        bytes(right.data),
    )


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
def test_a_request_comes_back_as_it_went(inputs: list[Tensor], binary: bool) -> None:
    body, headers = oip.encode_request(inputs, binary=binary, request_id="r1")
    request = oip.decode_request(body, headers.get(oip.HEADER))
    assert request.id == "r1"
    assert all(same(sent, got) for sent, got in zip(inputs, request.inputs, strict=True))
    assert (request.binary_outputs is None) == binary


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
def test_a_response_comes_back_as_it_went(outputs: list[Tensor], binary: bool) -> None:
    response = InferResponse(model="m", outputs=outputs, id=None)
    body, headers = oip.encode_response(response, binary=None if binary else frozenset())
    got = oip.decode_response(body, headers.get(oip.HEADER))
    assert got.model == "m"
    assert all(same(sent, back) for sent, back in zip(outputs, got.outputs, strict=True))


def test_binary_tensors_are_views_not_copies() -> None:
    body, headers = oip.encode_request([Tensor("images", "UINT8", (4,), b"\1\2\3\4")], binary=True)
    data = oip.decode_request(body, headers[oip.HEADER]).inputs[0].data
    assert isinstance(data, memoryview)
    assert data.obj is body


def test_nested_and_flat_json_data_are_the_same() -> None:
    flat = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    nested = {**flat, "data": [[1, 2], [3, 4]]}
    decoded = [oip.decode_request(json.dumps({"inputs": [one]}).encode(), None) for one in (flat, nested)]
    assert decoded[0].inputs == decoded[1].inputs


def test_outputs_asked_for_as_binary_are_told_apart() -> None:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}
    outputs = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    request = oip.decode_request(json.dumps({"inputs": [tensor], "outputs": outputs}).encode(), None)
    assert request.outputs == ("a", "b")
    assert request.binary_outputs == {"a"}


TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 1]}


@pytest.mark.parametrize(
    ("body", "length", "field"),
    [
        (b"", None, "body"),
        (b"[]", None, "body"),
        (b"{}", "3", oip.HEADER),
        (b"{}", "-1", oip.HEADER),
        (b"{}", "9" * 30, oip.HEADER),
        (b"[" * 100_000, None, "body"),
        (b'{"inputs":[{"x":NaN}]}', None, "body"),
        (b'{"inputs":[]}', None, "inputs"),
        ({"inputs": ["x"]}, None, "inputs.0"),
        ({"inputs": [{**TENSOR, "name": ""}]}, None, "inputs.0.name"),
        ({"inputs": [{**TENSOR, "datatype": "BYTES"}]}, None, "inputs.0.datatype"),
        ({"inputs": [{**TENSOR, "shape": [-1, 2]}]}, None, "inputs.0.shape"),
        ({"inputs": [{**TENSOR, "shape": [True, 2]}]}, None, "inputs.0.shape"),
        ({"inputs": [{**TENSOR, "shape": [2**31]}]}, None, "inputs.0.shape"),
        ({"inputs": [{**TENSOR, "shape": [2**30, 2**30, 2**30]}]}, None, "inputs.0.data"),
        ({"inputs": [{**TENSOR, "data": ["a", 1]}]}, None, "inputs.0.data"),
        ({"inputs": [{**TENSOR, "data": [0, [1]]}]}, None, "inputs.0.data"),
        ({"inputs": [{**TENSOR, "data": [0]}]}, None, "inputs.0.data"),
        ({"inputs": [{**TENSOR, "datatype": "UINT8", "data": [0, 256]}]}, None, "inputs.0.data"),
        ({"inputs": [TENSOR], "outputs": [1]}, None, "outputs.0"),
        ({"inputs": [TENSOR], "outputs": 1}, None, "outputs"),
        ({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 8}}]}, None, "inputs.0.parameters.binary_data_size"),
    ],
)
def test_every_fault_is_named(body: bytes | dict[str, object], length: str | None, field: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidPayload) as caught:
        oip.decode_request(raw, length)
    assert [fault.field for fault in caught.value.faults] == [field]


def test_faults_are_collected() -> None:
    bad = {"inputs": [{**TENSOR, "name": "", "datatype": "?"}, {**TENSOR, "shape": None}]}
    with pytest.raises(InvalidPayload) as caught:
        oip.decode_request(json.dumps(bad).encode(), None)
    assert [fault.field for fault in caught.value.faults] == ["inputs.0.name", "inputs.0.datatype", "inputs.1.shape"]


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    body, headers = oip.encode_request([Tensor("x", "UINT8", (1,), b"\0")], binary=True)
    with pytest.raises(InvalidPayload, match="belong to no tensor"):
        oip.decode_request(body + b"\0", headers[oip.HEADER])


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=5)))
def test_no_body_breaks_the_parser(body: bytes, length: str | None) -> None:
    with pytest.raises(InvalidPayload):
        oip.decode_request(body, length)
