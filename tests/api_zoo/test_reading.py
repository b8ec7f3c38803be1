"""What is remembered of requests changes nothing of how they are read."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from api_zoo.inference import Model
from api_zoo.reading import FORMS, Asked, read
from contracts import oip
from contracts.problems import ProblemError

SHAPE = (3, 2, 2)
COUNT = 12  # numbers an image


def model() -> Model:
    return Model("m", nn.Identity(), list("ab"), SHAPE)


def body(head: dict[str, object], raw: bytes) -> tuple[bytearray, str]:
    text = json.dumps(head).encode()
    return bytearray(text + raw), str(len(text))


def asked(of: Model, sent: bytearray, length: str | None) -> tuple[object, ...]:
    try:
        got: Asked = read(of, bytearray(sent), length, 3, digested=True)
    except ProblemError as error:
        return error.problem.status, error.problem.errors
    rows = 4 * len(got.images) * len(of.labels)
    answers = [got.write(np.arange(size // 4, dtype="<f4").tobytes()) for size in (rows, rows - 8)]
    return got.images.tolist(), str(got.images.dtype), got.digest, answers


heads = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["images", "pixels"]),
                    "datatype": st.sampled_from(["FP32", "UINT8"]),
                    "shape": st.sampled_from([[n, *SHAPE] for n in range(5)]),
                    "parameters": st.fixed_dictionaries(
                        {"binary_data_size": st.sampled_from([COUNT, 4 * COUNT, 8 * COUNT])}
                    ),
                },
                optional={"data": st.just([0.5] * COUNT)},
            ),
            min_size=1,
            max_size=2,
        )
    },
    optional={
        "id": st.sampled_from(["", "r1"]),
        "outputs": st.just([{"name": "probabilities", "parameters": {"binary_data": True}}]),
        "parameters": st.fixed_dictionaries({"binary_data_output": st.booleans()}),
    },
)


@given(heads, st.data())
def test_a_form_that_was_seen_before_reads_as_if_it_were_new(head: dict[str, object], data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, COUNT, 4 * COUNT, 8 * COUNT]))
    numbers = st.sampled_from([0.0, -0.0, 0.25, 1.0, 1.0000001, -1e-9, float("nan"), float("inf"), float("-inf")])
    used = model()
    for _ in range(3):
        some = data.draw(st.lists(numbers, min_size=size // 4, max_size=size // 4))
        sent, length = body(head, np.array(some, "<f4").tobytes())
        assert asked(used, sent, length) == asked(model(), sent, length)
        assert asked(used, sent + b"\0", length) == asked(model(), sent + b"\0", length)


def test_most_requests_are_read_by_their_form() -> None:
    used = model()
    sent = oip.Tensor("images", "FP32", (2, *SHAPE), np.full((2, *SHAPE), 0.5, "<f4").tobytes())
    for number in range(FORMS + 2):
        made, headers = oip.encode_request([sent], binary=True, request_id=str(number))
        read(used, bytearray(made), headers[oip.HEADER], 3, digested=False)
        assert 1 <= len(used.forms) <= FORMS
    form = next(iter(used.forms.values()))
    assert (form.datatype, form.shape) == ("FP32", (2, *SHAPE))


def test_a_form_of_too_many_images_is_refused_also_when_it_was_seen() -> None:
    used = model()
    sent = oip.Tensor("images", "UINT8", (2, *SHAPE), bytes(2 * COUNT))
    made, headers = oip.encode_request([sent], binary=True)
    assert len(read(used, bytearray(made), headers[oip.HEADER], 2, digested=False).images) == 2
    with pytest.raises(ProblemError, match="at most 1"):
        read(used, bytearray(made), headers[oip.HEADER], 1, digested=False)
