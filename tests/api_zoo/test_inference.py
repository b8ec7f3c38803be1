"""The engine against the plain module; and what it refuses to look at."""

import math

import pytest
import torch

from api_zoo.inference import BadInput, Model, folded, limited
from contracts import oip
from contracts.zoo import Normalisation
from dfml.nets import build_classifier
from dfml.numerics.distillation import rounding_unit
from dfml.teachers import CHUNK, ModuleTeacher

NORMALISE = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
SHAPE = (3, 19, 16)


def classifier(conv_bias: bool = False):
    """With batch-norm statistics that are not those of an untrained network."""
    generator = torch.Generator().manual_seed(0)
    module = build_classifier(8, SHAPE, 5, normalisation=NORMALISE, conv_bias=conv_bias, generator=generator)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            part.weight.data.normal_(1, 0.3, generator=generator)
            part.bias.data.normal_(0, 0.3, generator=generator)
    return module


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (CHUNK + 9, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("conv_bias", [False, True])
def test_folded_answers_as_the_plain_module(images: torch.Tensor, conv_bias: bool) -> None:
    module = classifier(conv_bias)
    plain = ModuleTeacher(module, ways=5, input_shape=SHAPE).predict(images)
    model = Model("m", folded(module), list("abcde"), SHAPE)
    torch.testing.assert_close(model.predict(images), plain, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded(module).modules())
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())  # the caller's is untouched


def test_an_answer_depends_on_its_own_image_alone(images: torch.Tensor) -> None:
    model = Model("m", folded(classifier()), list("abcde"), SHAPE)
    together = model.predict(images)
    alone = torch.cat([model.predict(images[index : index + 1]) for index in range(len(images))])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-5)
    strangers = images.flip(0).clone()
    strangers[3] = images[3]
    torch.testing.assert_close(model.predict(strangers)[3], together[3], atol=1e-6, rtol=1e-5)


def test_bytes_and_floats_of_the_same_pixels_get_the_same_answer(images: torch.Tensor) -> None:
    model = Model("m", folded(classifier()), list("abcde"), SHAPE)
    torch.testing.assert_close(model.predict(images.float() / 255), model.predict(images))


def test_answers_are_rows_of_probabilities(images: torch.Tensor) -> None:
    model = Model("m", folded(classifier()), list("abcde"), SHAPE)
    rows = torch.frombuffer(bytearray(model.answer(images.numpy())), dtype=torch.float32).view(-1, 5)
    assert len(rows) == len(images)
    torch.testing.assert_close(rows.sum(1), torch.ones(len(images)))


def sent(n: int = 1, *, name="images", datatype="FP32", shape=None, fill: float = 0.5) -> oip.Tensor:
    shape = (n, *SHAPE) if shape is None else shape
    count = math.prod(shape)
    data = torch.full((count,), fill).numpy().tobytes() if datatype == "FP32" else bytes(count * 8)
    return oip.Tensor(name, datatype, shape, data)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ([], "inputs"),
        ([sent(), sent()], "inputs"),
        ([sent(name="pixels")], "inputs.0.name"),
        ([sent(datatype="INT64")], "inputs.0.datatype"),
        ([sent(n=0)], "inputs.0.shape"),
        ([sent(shape=SHAPE)], "inputs.0.shape"),
        ([sent(shape=(1, 3, 16, 19))], "inputs.0.shape"),
        ([sent(shape=(1, 1, 19, 16))], "inputs.0.shape"),
    ],
)
def test_tensors_that_are_no_images_are_named(inputs: list[oip.Tensor], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        Model("m", folded(classifier()), list("abcde"), SHAPE).check(inputs)
    assert [fault.field for fault in caught.value.faults] == [field]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 1.001, 255.0])
def test_pixels_out_of_range_are_refused(value: float) -> None:
    pixels = torch.full((2, *SHAPE), 0.5)
    pixels[1, 2, 7, 3] = value
    model = Model("m", folded(classifier()), list("abcde"), SHAPE)
    with pytest.raises(BadInput, match=r"send FP32 in \[0, 1\], or UINT8"):
        model.images(oip.Tensor("images", "FP32", tuple(pixels.shape), pixels.numpy().tobytes()))


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b", "-first", "x" * 101])
def test_names_that_no_path_can_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no model name"):
        Model(name, classifier(), list("abcde"), SHAPE)


@pytest.mark.parametrize(
    ("policy", "rows"),
    [
        ("probabilities", [[0.125, 0.625, 0.25], [0.375, 0.25, 0.375]]),
        ("topk:1", [[0, 0.625, 0], [0.375, 0, 0]]),
        ("topk:2", [[0, 0.625, 0.25], [0.375, 0, 0.375]]),
        ("topk:3", [[0.125, 0.625, 0.25], [0.375, 0.25, 0.375]]),
        ("round:1", [[0.1, 0.6, 0.3], [0.4, 0.3, 0.4]]),
        ("round:2", [[0.13, 0.63, 0.25], [0.38, 0.25, 0.38]]),  # 0.125, 0.625, 0.375: half up
        ("label", [[0, 1, 0], [1, 0, 0]]),
    ],
)
def test_a_policy_says_what_an_answer_tells(policy: str, rows: list[list[float]]) -> None:
    probabilities = torch.tensor([[0.125, 0.625, 0.25], [0.375, 0.25, 0.375]])
    assert limited(probabilities, policy).tolist() == torch.tensor(rows).tolist()


@pytest.mark.parametrize(("policy", "unit"), [("round:1", 0.1), ("round:2", 0.01), ("round:3", 0.001), ("label", 1.0)])
def test_distillation_recognises_the_precision_of_answers(images: torch.Tensor, policy: str, unit: float) -> None:
    model = Model("m", classifier(), list("abcde"), SHAPE, policy=policy)
    rows = torch.frombuffer(bytearray(model.answer(images.numpy())), dtype=torch.float32).view(-1, 5)
    assert rounding_unit(rows) == unit
    assert model.metadata(8).parameters.response_policy == policy


@pytest.mark.parametrize(
    "policy", ["", "logits", "topk", "topk:0", "topk:6", "round:0", "round:7", "label:1", "label\n"]
)
def test_policies_that_are_none_are_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="response policy"):
        Model("m", classifier(), list("abcde"), SHAPE, policy=policy)


def test_a_model_may_take_bytes_alone(images: torch.Tensor) -> None:
    model = Model("m", classifier(), list("abcde"), SHAPE, eight_bit_only=True)
    assert model.metadata(8).parameters.datatypes == ["UINT8"]
    model.check([oip.Tensor("images", "UINT8", tuple(images.shape), images.numpy().tobytes())])
    with pytest.raises(BadInput, match=r"must be UINT8$"):
        model.check([sent()])
