from pathlib import Path

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


class Stopped(Exception):
    pass


def stopping_after(epochs: int):
    def on_epoch(epoch: int, total: int, metrics: dict[str, float]) -> None:
        if epoch == epochs:
            raise Stopped

    return on_epoch


@pytest.mark.parametrize("name", ["conv4", "resnet10"])
def test_a_stopped_training_goes_on_to_the_same_weights(shapes: Tensor, tmp_path: Path, name: str) -> None:
    config = BackboneConfig(backbone=name, width=16)
    whole, accuracy = train_classifier(shapes, config=config, seed=3, epochs=3)
    path = tmp_path / "state.safetensors"
    for stop in (1, 2):
        with pytest.raises(Stopped):
            train_classifier(shapes, config=config, seed=3, epochs=3, checkpoint=path, on_epoch=stopping_after(stop))
    told: list[int] = []
    parts, again = train_classifier(
        shapes, config=config, seed=3, epochs=3, checkpoint=path, on_epoch=lambda epoch, *_: told.append(epoch)
    )
    assert told == [3]
    assert again == accuracy
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[each], two[each]) for each in one)


def test_a_checkpoint_of_another_training_or_none_is_passed_over(
    shapes: Tensor, tiny: BackboneConfig, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    plain = weights(train_classifier(shapes, config=tiny, seed=0, epochs=1)[0])
    train_classifier(shapes, config=tiny, seed=1, epochs=1, checkpoint=path)
    for content in (path.read_bytes(), path.read_bytes()[:-9], b"", b"nothing"):
        path.write_bytes(content)
        found = weights(train_classifier(shapes, config=tiny, seed=0, epochs=1, checkpoint=path)[0])
        assert all(torch.equal(found[each], plain[each]) for each in plain)


def test_the_best_epoch_is_kept_and_patience_ends_the_training(
    shapes: Tensor, tiny: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracies are made up: the weights of the later of two equal best epochs are what comes back."""
    found: list[dict[str, Tensor]] = []
    planned = iter([0.5, 0.9, 0.9, 0.4, 0.3, 0.2])

    def accuracy(classifier, images, device) -> float:
        found.append({name: tensor.clone() for name, tensor in weights(classifier).items()})
        return next(planned)

    monkeypatch.setattr("dfml.supervised._accuracy", accuracy)
    classifier, _ = train_classifier(shapes, config=tiny, seed=0, epochs=9, patience=2)
    assert len(found) == 6  # five epochs, and the measurement
    kept = weights(classifier)
    assert all(torch.equal(kept[name], found[2][name]) for name in kept)
    assert not torch.equal(kept["head.weight"], found[3]["head.weight"])


def test_what_chooses_the_epoch_does_not_measure_it(
    shapes: Tensor, tiny: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr("dfml.supervised._accuracy", lambda classifier, images, device: (shown.append(images), 0.5)[1])
    train_classifier(shapes, config=tiny, seed=0, epochs=1)
    choosing, measuring = shown
    assert torch.equal(torch.stack([choosing, measuring], 2).flatten(1, 2), shapes[:, 32:])


def test_a_compiled_training_runs_through_torch_compile(
    shapes: Tensor, tiny: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("torch.compile", lambda module: compiled.append(module) or module)
    net, _ = train_classifier(shapes, config=tiny, seed=0, epochs=1, compiled=True)
    assert compiled == [net]


@pytest.mark.gpu
def test_a_gpu_trains_as_well(shapes: Tensor) -> None:
    config = BackboneConfig(backbone="resnet10", width=16)
    _, accuracy = train_classifier(shapes, config=config, seed=0, epochs=6, flip=False, device="cuda", compiled=True)
    assert accuracy > 0.8
