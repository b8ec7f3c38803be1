"""The quick reader of large JSON requests against the thorough one: what it takes, both read alike."""

import json
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_zoo import numerals
from contracts import oip

PLAIN = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-10, 300)
ODD = (
    PLAIN
    | st.booleans()
    | st.none()
    | st.text(max_size=2)
    | st.just(1e300)
    | st.just(2**70)
    | st.lists(PLAIN, max_size=2)
)
NUMBERS = st.lists(PLAIN, max_size=6) | st.lists(ODD, max_size=6) | st.lists(st.lists(ODD, max_size=3), max_size=3)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["images", "", "[x"]),
        "datatype": st.sampled_from(["FP32", "UINT8", "FP64", "BOOL", "what"]),
    },
    optional={"data": NUMBERS, "parameters": st.just({"binary_data_size": 0}), "more": st.just([1])},
).flatmap(
    lambda tensor: st.sampled_from([[len(tensor.get("data", ()))], [0], [2, 2], [-1], ["a"]]).map(
        lambda shape: {**tensor, "shape": shape}
    )
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | st.none()},
    optional={"id": st.just("7") | st.just(7), "outputs": st.just([{"name": "a"}]) | st.just([[]]) | st.just({})},
)


def told(body: bytes, **more) -> object:
    try:
        asked = oip.decode_request(memoryview(bytearray(body)), None, **more)
    except oip.InvalidPayload as error:
        return error.faults
    return asked.id, asked.outputs, [(one.name, one.datatype, one.shape, bytes(one.data)) for one in asked.inputs]


@given(REQUESTS)
@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
def test_it_reads_what_the_thorough_reader_reads(request: dict) -> None:
    body = json.dumps(request).encode()
    with mock.patch.object(numerals, "LARGE", 0):
        assert told(body, load=numerals.load) == told(body)


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[1e400]}]}',
        '{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[NaN]}]}',
        '{"inputs":[{"name":"a","datatype":"FP32","shape":[3],"data":[1,[2,3],[]]}]}',
        '{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[1],"data":[2]}]}',
        '{"inputs":[],"inputs":[{"name":"a","datatype":"UINT8","shape":[1],"data":[1]}]}',
        '{"inputs":[{"name":"a","datatype":"UINT8","shape":[1],"data":[1]}]} x',
        "[1]",
        "",
    ],
)
def test_what_is_odd_gets_the_same_faults(text: str) -> None:
    with mock.patch.object(numerals, "LARGE", 0):
        assert told(text.encode(), load=numerals.load) == told(text.encode())


def test_a_plain_request_makes_no_lists_of_numbers() -> None:
    body, _ = oip.encode_request([oip.Tensor("images", "FP32", (2, 2), bytes(16))], binary=False)
    with mock.patch.object(numerals, "LARGE", 0):
        read = numerals.load(memoryview(body))
        assert isinstance(read["inputs"][0]["data"], memoryview)
        assert isinstance(numerals.load(memoryview(body + b" "))["inputs"][0]["data"], memoryview)  # again
