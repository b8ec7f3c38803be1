import numpy as np
import pytest

from contracts.oip import Tensor
from worker.probe import BadApi, read_probabilities


def tensor(values: np.ndarray, datatype: str = "FP32") -> Tensor:
    data = values.astype("<f4" if datatype == "FP32" else "<f8").tobytes()
    return Tensor(name="probabilities", datatype=datatype, shape=values.shape, data=data)


def soft(images: int = 8, classes: int = 5, decimals: int | None = None) -> np.ndarray:
    exponents = np.exp(np.random.RandomState(0).standard_normal((images, classes)))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    return probabilities if decimals is None else probabilities.round(decimals)


@pytest.mark.parametrize("decimals", [None, 4, 3, 2, 1, 0])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_probabilities_pass_however_they_are_rounded(decimals: int | None, datatype: str) -> None:
    values = soft(decimals=decimals) if decimals != 0 else np.eye(5)[[0, 1, 2, 3, 4, 0, 1, 2]]
    read = read_probabilities(tensor(values, datatype), images=8, classes=5)
    assert read.dtype == np.float32
    assert (read == values.astype(np.float32)).all()


@pytest.mark.parametrize(
    "values",
    [
        soft() * 2,
        soft() * 0.9,
        soft() - 0.5,
        soft(classes=4),
        soft(images=7),
        np.full((8, 5), np.nan),
        np.zeros((8, 5)),
    ],
    ids=["double", "less", "negative", "classes", "images", "nan", "zeros"],
)
def test_anything_else_does_not(values: np.ndarray) -> None:
    with pytest.raises(BadApi):
        read_probabilities(tensor(values), images=8, classes=5)


def test_top_k_answers_pass_where_the_api_states_them() -> None:
    full = soft()
    values = np.where(full >= np.sort(full)[:, -2:-1], full, 0)
    assert (values > 0).sum(1).tolist() == [2] * 8
    read = read_probabilities(tensor(values), images=8, classes=5, response_policy="topk:2")
    assert (read == values.astype(np.float32)).all()
    for policy in ("", "probabilities", "topk", "topk:4", "label", "round:2"):
        with pytest.raises(BadApi, match="sum to"):
            read_probabilities(tensor(values), images=8, classes=5, response_policy=policy)


@pytest.mark.parametrize("values", [np.zeros((8, 5)), soft() * 1.5], ids=["nothing", "too much"])
def test_a_stated_top_k_excuses_no_other_sums(values: np.ndarray) -> None:
    with pytest.raises(BadApi, match="sum to"):
        read_probabilities(tensor(values), images=8, classes=5, response_policy="topk:2")
