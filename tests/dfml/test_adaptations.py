"""Transductive features and fine-tuning, each against the plain way of doing it."""

import torch
import torch.nn.functional as F

from contracts.meta_models import BackboneConfig, Evaluation
from dfml import tasks
from dfml.adaptation import heads
from dfml.datasets import Dataset
from dfml.evaluate import difference, hits
from dfml.finetuning import finetuned_hits
from dfml.nets import build
from dfml.nets.learner import Learner

EVALUATION = Evaluation(dataset="blobs", ways=3, shots=[1, 5], episodes=4)


def test_transductive_features_are_those_of_the_module_in_training_mode(blobs: Dataset) -> None:
    backbone = build(BackboneConfig(width=16), (3, 16, 16), generator=torch.Generator().manual_seed(0))
    got = hits(backbone, blobs, EVALUATION, "prototypes", "cpu", batch_norm="batch")
    images = blobs.images("val").flatten(0, 1)
    episodes = tasks.sample(EVALUATION, classes=12, per_class=40)
    plain = build(BackboneConfig(width=16), (3, 16, 16), generator=torch.Generator().manual_seed(0)).train()
    for row, shots in enumerate((1, 5)):
        for episode in range(4):
            support = torch.from_numpy(episodes.support(shots)[episode].reshape(-1))
            query = torch.from_numpy(episodes.asked[episode].reshape(-1))
            with torch.no_grad():
                features = plain(images[torch.cat([support, query])])
            labels = torch.arange(3).repeat_interleave(shots)
            fitted = heads("prototypes", features[None, : 3 * shots], labels[None], ways=3)
            guess = fitted.logits(features[None, 3 * shots :])[0].argmax(-1)
            answer = torch.arange(3).repeat_interleave(EVALUATION.queries)
            assert got[row, episode].item() == 100 * (guess == answer).double().mean().item()


def test_fine_tuning_is_plain_gradient_descent_from_a_head_of_zeros(blobs: Dataset) -> None:
    backbone = build(BackboneConfig(width=16), (3, 16, 16), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    got = finetuned_hits(backbone, blobs, EVALUATION, batch_norm="running", steps=2, lr=0.05)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    images = blobs.images("val").flatten(0, 1)
    episodes = tasks.sample(EVALUATION, classes=12, per_class=40)
    plain = Learner(backbone, 3).eval()
    torch.nn.init.zeros_(plain.head.weight)
    torch.nn.init.zeros_(plain.head.bias)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        logits = plain(images[torch.from_numpy(episodes.support(5)[2].reshape(-1))])
        F.cross_entropy(logits, torch.arange(3).repeat_interleave(5)).backward()
        optimiser.step()
    guess = plain(images[torch.from_numpy(episodes.asked[2].reshape(-1))]).argmax(-1)
    answer = torch.arange(3).repeat_interleave(EVALUATION.queries)
    assert got[1, 2].item() == 100 * (guess == answer).double().mean().item()


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    random = torch.Generator().manual_seed(0)
    one = 50 + 10 * torch.randn(2, 200, generator=random, dtype=torch.float64)
    gain, half = difference(one + 1, one)
    assert torch.allclose(gain, torch.ones(2, dtype=torch.float64))
    assert (half < 1e-9).all()
