from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation
from dfml import evaluate as module
from dfml import tasks
from dfml.adaptation import adapt
from dfml.evaluate import evaluate, evaluate_random
from dfml.nets import Backbone, build


@dataclass(frozen=True)
class Toy:
    """Six classes of 12 images of 16x16, each of a colour of its own under noise."""

    name: str = "toy"

    def classes(self, split: str) -> tuple[str, ...]:
        return tuple("abcdef")

    def images(self, split: str) -> Tensor:
        rng = np.random.RandomState(0)
        colours = rng.uniform(60, 190, (6, 1, 3, 1, 1))
        noisy = colours + 45 * rng.standard_normal((6, 12, 3, 16, 16)) + 25 * rng.standard_normal((6, 12, 3, 1, 1))
        return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


EVALUATION = Evaluation(dataset="toy", ways=3, shots=[1, 4], queries=5, episodes=20, seed=3)


@pytest.fixture
def backbone(tiny: BackboneConfig) -> Backbone:
    return build(tiny, (3, 16, 16), generator=torch.Generator().manual_seed(0))


def test_episodes_are_fixed_and_well_formed() -> None:
    made = tasks.sample(EVALUATION, classes=6, per_class=12)
    assert made.support(4).shape == (20, 3, 4)
    assert made.asked.shape == (20, 3, 5)
    for shown, asked in zip(made.support(4), made.asked, strict=True):
        together = np.concatenate([shown, asked], 1)
        assert len(np.unique(together)) == together.size  # support and queries share no image
        owner = together // 12
        assert (owner == owner[:, :1]).all()  # one class a row
        assert len(np.unique(owner[:, 0])) == 3
    again = tasks.sample(EVALUATION, classes=6, per_class=12)
    assert np.array_equal(made.shown, again.shown)
    other = tasks.sample(EVALUATION.model_copy(update={"seed": 4}), classes=6, per_class=12)
    assert not np.array_equal(made.shown, other.shown)


def test_the_first_episode_of_seed_3_is_this_one_for_ever() -> None:
    made = tasks.sample(EVALUATION, classes=6, per_class=12)
    assert made.support(1)[0, :, 0].tolist() == [45, 60, 50]


def test_queries_do_not_depend_on_the_shots_asked_for() -> None:
    one = tasks.sample(EVALUATION.model_copy(update={"shots": [1]}), classes=6, per_class=12)
    more = tasks.sample(EVALUATION, classes=6, per_class=12)
    assert np.array_equal(one.asked, more.asked)
    assert np.array_equal(one.support(1), more.support(1))


def test_episodes_at_once_are_episodes_one_by_one(backbone: Backbone) -> None:
    """The whole evaluation against `adapt` and `predict` on images, an episode at a time."""
    score = evaluate(backbone, Toy(), EVALUATION)
    episodes = tasks.sample(EVALUATION, classes=6, per_class=12)
    pool = Toy().images("val").flatten(0, 1)
    for shots in (1, 4):
        hits = []
        for shown, asked in zip(episodes.support(shots), episodes.asked, strict=True):
            labels = torch.arange(3).repeat_interleave(shots)
            adapted = adapt(backbone, pool[torch.from_numpy(shown.ravel())], labels, ways=3)
            guess = adapted.predict(pool[torch.from_numpy(asked.ravel())]).argmax(-1)
            hits.append((guess == torch.arange(3).repeat_interleave(5)).double().mean().item() * 100)
        assert score.accuracy[str(shots)] == pytest.approx(np.mean(hits), abs=0.7)  # one near tie may fall otherwise
        assert score.interval[str(shots)] == pytest.approx(1.96 * np.std(hits) / 20**0.5, abs=0.7)
    assert 33 < score.accuracy["1"] < score.accuracy["4"] <= 100


def test_small_parts_give_the_same_score(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = evaluate(backbone, Toy(), EVALUATION), []
    monkeypatch.setattr(module, "TOGETHER", 7)
    parts = evaluate(backbone, Toy(), EVALUATION, on_episode=lambda done, total: calls.append((done, total)))
    assert parts.accuracy == pytest.approx(whole.accuracy, abs=0.4)
    assert calls == [(7, 20), (14, 20), (20, 20)]


def test_random_is_the_mean_of_its_seeds(tiny: BackboneConfig) -> None:
    calls: list[tuple[int, int]] = []

    def score(*seeds: int) -> float:
        def count(done: int, total: int) -> None:
            calls.append((done, total))

        made = evaluate_random(tiny, (3, 16, 16), Toy(), EVALUATION, seeds=seeds, on_episode=count)
        return made.accuracy["4"]

    assert score(0, 1) == pytest.approx((score(0) + score(1)) / 2)
    assert calls[:2] == [(20, 40), (40, 40)]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ways": 7}, "more than the 6 classes"), ({"shots": [8]}, "needs 13 images a class, this split has 12")],
)
def test_an_evaluation_that_does_not_fit(backbone: Backbone, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(backbone, Toy(), EVALUATION.model_copy(update=change))


def test_another_image_size_is_named(tiny: BackboneConfig) -> None:
    backbone = build(tiny, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"the network takes \(3, 32, 32\)"):
        evaluate(backbone, Toy(), EVALUATION)
