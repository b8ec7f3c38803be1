import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml.nets import weights
from dfml.supervised import train_classifier


@pytest.fixture
def shapes() -> Tensor:
    """uint8 (3, 40, 3, 16, 16): left half, upper half and middle brighter than the rest, under noise."""
    rng = np.random.RandomState(0)
    base = np.full((3, 1, 1, 16, 16), 80.0)
    base[0, ..., :8] += 70
    base[1, ..., :8, :] += 70
    base[2, ..., 4:12, 4:12] += 70
    noisy = base + 40 * rng.standard_normal((3, 40, 3, 16, 16))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def test_a_teacher_learns_and_tells_its_held_out_accuracy(shapes: Tensor, tiny: BackboneConfig) -> None:
    epochs: list[tuple[int, int]] = []
    losses: list[float] = []

    def count(epoch: int, total: int, metrics: dict[str, float]) -> None:
        epochs.append((epoch, total))
        losses.append(metrics["loss"])

    net, accuracy = train_classifier(shapes, config=tiny, seed=0, epochs=6, flip=False, on_epoch=count)
    assert accuracy > 0.8
    assert not net.training
    assert epochs == [(k, 6) for k in range(1, 7)]
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_teacher(shapes: Tensor, tiny: BackboneConfig) -> None:
    one, two, other = (weights(train_classifier(shapes, config=tiny, seed=seed, epochs=1)[0]) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_held_out_images_are_never_trained_on(shapes: Tensor, tiny: BackboneConfig) -> None:
    changed = shapes.clone()
    changed[:, 32:] = 255 - changed[:, 32:]
    one, two = (weights(train_classifier(x, config=tiny, seed=0, epochs=1)[0]) for x in (shapes, changed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("config", "held_out", "message"),
    [
        (BackboneConfig(backbone="resnet10"), 0.2, "give conv4"),
        (BackboneConfig(width=16), 0.0, "none left"),
        (BackboneConfig(width=16), 1.0, "none left"),
    ],
)
def test_what_cannot_be_trained(shapes: Tensor, config: BackboneConfig, held_out: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_classifier(shapes, config=config, seed=0, held_out=held_out)


def test_a_callback_may_stop_training(shapes: Tensor, tiny: BackboneConfig) -> None:
    def stop(epoch: int, total: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(shapes, config=tiny, seed=0, epochs=2, on_epoch=stop)
