"""A network that has learned a task: its files say all, it answers as what was fitted, neighbours do not matter."""

import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import IcfilOptions
from dfml import adaptation, adapted, icfil
from dfml.io import BadModel
from dfml.nets import Backbone, build

OPTIONS = IcfilOptions(steps=2, images_per_class=2, inversion_steps=2, calibration_steps=1)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
NAMES = ["a", "b", "ç"]


@pytest.fixture
def backbone() -> Backbone:
    return build(BackboneConfig(width=16), (3, 16, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["logistic", "prototypes"])
def test_a_head_answers_as_adaptation_does(method: adaptation.HeadName, backbone: Backbone, images: Tensor) -> None:
    network = adapted.fit(backbone, images, LABELS, ways=3, method=method)
    assert network.backbone is backbone
    plain = adaptation.adapt(backbone, images, LABELS, ways=3, head=method).predict(images)
    torch.testing.assert_close(adapted.predict(network, images), plain)


def test_fine_tuning_answers_as_icfil_does_and_leaves_the_backbone(backbone: Backbone, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    network = adapted.fit(backbone, images, LABELS, ways=3, method="fine-tune", fine_tuning=OPTIONS, seed=4)
    plain = icfil.adapt(backbone, images, LABELS, ways=3, options=OPTIONS, seed=4).predict(images)
    torch.testing.assert_close(adapted.predict(network, images), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    with pytest.raises(ValueError, match="give fine_tuning"):
        adapted.fit(backbone, images, LABELS, ways=3, method="fine-tune")


@pytest.mark.parametrize("method", ["logistic", "prototypes", "fine-tune"])
@pytest.mark.parametrize("options", [None, OPTIONS])
def test_its_files_bring_it_back(
    method: adapted.Method, options: IcfilOptions | None, backbone: Backbone, images: Tensor
) -> None:
    options = options or (IcfilOptions(steps=2, calibration_steps=0) if method == "fine-tune" else None)
    network = adapted.fit(backbone, images, LABELS, ways=3, method=method, fine_tuning=options)
    shared = network.backbone is backbone
    assert shared == (options is None)
    files = adapted.dump(network, labels=NAMES, meta_model="mm_1", shared=shared)
    assert files == adapted.dump(network, labels=NAMES, meta_model="mm_1", shared=shared)
    again, labels = adapted.load(files, backbone)
    assert labels == NAMES
    assert torch.equal(adapted.predict(again, images), adapted.predict(network, images))
    assert adapted.size(again) == adapted.size(network)
    alone = torch.cat([adapted.predict(again, image[None]) for image in images])
    torch.testing.assert_close(alone, adapted.predict(again, images))


def test_other_files_are_refused(backbone: Backbone, images: Tensor) -> None:
    files = adapted.dump(adapted.fit(backbone, images, LABELS, ways=3), labels=NAMES, meta_model="mm_1", shared=True)
    other = build(BackboneConfig(width=32), (3, 16, 16), generator=torch.Generator())
    for wrong in (
        {**files, "config.json": b"{}"},
        {**files, "config.json": b"no JSON"},
        {**files, "config.json": files["config.json"].replace(b"true", b"false")},
        {**files, "config.json": files["config.json"].replace(b'"unit"', b'"linear"')},
        {**files, "config.json": files["config.json"].replace(b'"unit"', b'"round"')},
        {**files, "config.json": files["config.json"].replace(b'"a",', b"")},
        {**files, "config.json": files["config.json"].replace(b'"format": 1', b'"format": 2')},
        {**files, "model.safetensors": files["model.safetensors"][:-9]},
        {"config.json": files["config.json"]},
    ):
        with pytest.raises(BadModel):
            adapted.load(wrong, backbone)
    with pytest.raises(BadModel):
        adapted.load(files, other)
