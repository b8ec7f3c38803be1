"""ICFIL: fine-tuning, inversion from the adapted network, calibration; the meta-model itself is never changed."""

import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import IcfilOptions
from dfml import icfil
from dfml.datasets import Dataset
from dfml.fusion import transplant
from dfml.nets import Backbone
from dfml.numerics.calibration import calibration_loss
from dfml.teachers import ModuleTeacher

OPTIONS = IcfilOptions(steps=10, rate=0.01, images_per_class=4, inversion_steps=10, calibration_steps=3)


@pytest.fixture
def backbone(blob_teachers: list[ModuleTeacher]) -> Backbone:
    return transplant(blob_teachers[0], BackboneConfig(width=16))


@pytest.fixture
def support(blobs: Dataset) -> tuple[Tensor, Tensor]:
    return blobs.images("val")[:3, :5].flatten(0, 1), torch.arange(3).repeat_interleave(5)


def test_it_learns_a_new_task(backbone: Backbone, support: tuple[Tensor, Tensor], blobs: Dataset) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    adapted = icfil.adapt(backbone, *support, ways=3, options=OPTIONS, seed=0)
    answers = adapted.predict(blobs.images("val")[:3, 5:].flatten(0, 1))
    right = (answers.argmax(-1) == torch.arange(3).repeat_interleave(35)).double().mean().item()
    assert right > 0.5
    assert torch.allclose(answers.sum(1), torch.ones(105))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    again = icfil.adapt(backbone, *support, ways=3, options=OPTIONS, seed=0)
    assert torch.equal(again.predict(support[0]), adapted.predict(support[0]))


def test_calibration_descends_its_loss_and_leaves_the_head(backbone: Backbone, support: tuple[Tensor, Tensor]) -> None:
    plain = icfil.adapt(backbone, *support, ways=3, options=OPTIONS.model_copy(update={"calibration_steps": 0}), seed=0)
    assert plain.pseudo is None
    adapted = icfil.adapt(backbone, *support, ways=3, options=OPTIONS, seed=0)
    assert adapted.pseudo is not None
    assert torch.equal(adapted.learner.head.weight, plain.learner.head.weight)

    def loss(calibrated: icfil.Calibrated) -> float:
        assert adapted.pseudo is not None
        net, (images, labels) = calibrated.learner.backbone, support
        real, made = (torch.nn.functional.normalize(net(x), dim=-1) for x in (images, adapted.pseudo.images))
        return calibration_loss(real, labels, made, adapted.pseudo.labels, temperature=OPTIONS.temperature).item()

    assert loss(adapted) < loss(plain)


def test_labels_are_checked(backbone: Backbone, support: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="classes 0 to 3"):
        icfil.adapt(backbone, *support, ways=4, options=OPTIONS, seed=0)
