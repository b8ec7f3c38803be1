"""The compiled networks against the plain ones."""

import psutil
import pytest
import torch

from api_zoo.compiled import STEP, Compiled
from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.nets import Classifier, build, build_classifier
from dfml.teachers import ModuleTeacher

NORMALISE = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def classifier(backbone: str, width: int, shape: tuple[int, int, int], *, conv_bias: bool = False) -> Classifier:
    """With batch-norm statistics that are not those of an untrained network."""
    generator = torch.Generator().manual_seed(0)
    module = build_classifier(
        width, shape, 5, normalisation=NORMALISE, backbone=backbone, conv_bias=conv_bias, generator=generator
    )
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            part.weight.data.normal_(1, 0.3, generator=generator)
            part.bias.data.normal_(0, 0.3, generator=generator)
    return module


@pytest.mark.parametrize(
    ("backbone", "width", "shape", "conv_bias"),
    [
        ("conv4", 32, (3, 32, 32), False),
        ("conv4", 13, (3, 19, 16), True),
        ("resnet10", 8, (3, 32, 32), False),
        ("resnet12", 16, (3, 21, 30), False),
        ("resnet18", 5, (3, 21, 30), False),
    ],
)
def test_it_answers_as_the_plain_network(
    backbone: str, width: int, shape: tuple[int, int, int], conv_bias: bool
) -> None:
    module = classifier(backbone, width, shape, conv_bias=conv_bias)
    images = torch.randint(0, 256, (STEP + 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain = ModuleTeacher(module, ways=5, input_shape=shape).predict(images)
    compiled = Compiled(module)
    torch.testing.assert_close(compiled(images).softmax(-1), plain, atol=1e-6, rtol=1e-5)
    assert torch.equal(compiled(images.float() / 255), compiled(images))
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())  # the caller's is untouched


def test_it_holds_what_it_says() -> None:
    """Weights of 20 MB, so that all else is small beside them."""
    module = classifier("resnet10", 64, (3, 16, 16))
    size = sum(tensor.nbytes for tensor in module.parameters())
    told = Compiled(module).held_bytes
    before = psutil.Process().memory_info().rss
    kept = [Compiled(module) for _ in range(4)]
    assert told > size
    assert psutil.Process().memory_info().rss - before < 4 * told + 2 * size
    assert kept


def test_a_backbone_gives_its_features() -> None:
    config = BackboneConfig(backbone="resnet10", width=16)
    backbone = build(config, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(Compiled(backbone)(images), backbone(images), atol=1e-6, rtol=1e-5)
