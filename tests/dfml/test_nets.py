import pytest
import torch

from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.nets import STUDENT, Backbone, Classifier, build, build_classifier, load_weights, weights


def make(config: BackboneConfig, shape: tuple[int, int, int], seed: int = 0) -> Backbone:
    return build(config, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "shape", "dim"),
    [
        (BackboneConfig(width=16), (3, 32, 32), 64),
        (BackboneConfig(width=32), (3, 28, 28), 32),
        (BackboneConfig(width=64), (3, 84, 84), 64 * 25),
        (BackboneConfig(width=16), (3, 16, 40), 32),
        (BackboneConfig(backbone="resnet10", width=16), (3, 32, 32), 128),
        (BackboneConfig(backbone="resnet10", width=32), (3, 20, 28), 256),
        (BackboneConfig(backbone="resnet18", width=16), (3, 17, 16), 128),
        (BackboneConfig(backbone="resnet12", width=16), (3, 17, 20), 160),
        (BackboneConfig(backbone="resnet12", width=64), (3, 84, 84), 640),
    ],
)
def test_features_of_any_input_size(config: BackboneConfig, shape: tuple[int, int, int], dim: int) -> None:
    backbone = make(config, shape)
    features = backbone(torch.randint(0, 256, (2, *shape), dtype=torch.uint8))
    assert features.shape == (2, dim) == (2, backbone.dim)
    assert features.dtype == torch.float32


def test_uint8_and_unit_interval_are_the_same_image() -> None:
    backbone = make(BackboneConfig(width=16), (3, 16, 16))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(backbone(images), backbone(images.float() / 255))


@pytest.mark.parametrize("name", ["conv4", "resnet10", "resnet12", "resnet18"])
def test_the_generator_alone_decides_the_weights(name: str) -> None:
    config = BackboneConfig(backbone=name, width=16)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = weights(make(config, (3, 16, 16)))
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing taken from the process
    torch.manual_seed(6)
    two, other = weights(make(config, (3, 16, 16))), weights(make(config, (3, 16, 16), seed=1))
    assert one.keys() == two.keys() == other.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one[next(iter(one))], other[next(iter(one))])


def test_weights_survive_a_round_trip() -> None:
    first, second = (make(BackboneConfig(width=16), (3, 16, 16), seed) for seed in (0, 1))
    load_weights(second, weights(first))
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(first(images), second(images))


def classifier(*, conv_bias: bool = False) -> Classifier:
    normalisation = Normalisation(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    return build_classifier(
        8, (3, 16, 16), 3, normalisation=normalisation, conv_bias=conv_bias, generator=torch.Generator().manual_seed(0)
    )


def test_names_are_those_of_zoo_files() -> None:
    names = set(weights(classifier(conv_bias=True)))
    block = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    assert names == {f"blocks.{k}.{part}" for k in range(4) for part in block} | {"head.weight", "head.bias"}


def test_a_classifier_normalises_by_its_own_statistics() -> None:
    net = classifier()
    image = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1) + torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1) * 0.1
    assert torch.allclose(net.normalise(image.expand(1, 3, 16, 16)), torch.tensor(0.1), atol=1e-6)
    assert STUDENT.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("head.bias"), "head.bias is missing"),
        (lambda held: held.update(extra=torch.zeros(1)), "extra is unknown"),
        (lambda held: held.update({"head.bias": torch.zeros(4)}), r"head.bias has shape \(4,\), expected \(3,\)"),
        (lambda held: held["head.bias"].fill_(float("nan")), "head.bias holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: object, message: str) -> None:
    held = weights(classifier())
    change(held)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load_weights(classifier(), held)


def test_too_small_for_what_halves_them_four_times() -> None:
    for name in ("conv4", "resnet12"):
        with pytest.raises(ValueError, match="16 pixels a side"):
            make(BackboneConfig(backbone=name), (3, 15, 32))


def test_resnets_have_as_many_layers_as_their_name_says() -> None:
    for name, layers in (("resnet10", 10), ("resnet12", 13), ("resnet18", 18)):  # of ResNet-12 the head is not counted
        net = make(BackboneConfig(backbone=name, width=16), (3, 16, 16))
        spatial = [each for each in net.modules() if isinstance(each, torch.nn.Conv2d) and each.kernel_size == (3, 3)]
        assert len(spatial) + 1 == layers  # and the head


def test_a_classifier_of_an_unknown_network_is_refused() -> None:
    for name, bias in (("vgg", False), ("resnet10", True)):
        with pytest.raises(ValueError, match="conv4, resnet10, resnet12, resnet18"):
            build_classifier(
                16, (3, 16, 16), 2, normalisation=STUDENT, backbone=name, conv_bias=bias, generator=torch.Generator()
            )
