"""Episodes of tasks that nobody labelled: their classes, what they move, and that they teach."""

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import PqdOptions
from dfml import episodes
from dfml.datasets import Dataset
from dfml.evaluate import evaluate
from dfml.memory import Answers
from dfml.methods import pqd
from dfml.nets import build, weights
from dfml.teachers import ModuleTeacher

CONFIG = BackboneConfig(width=16)


def answers_of(images: Tensor, teachers: list[ModuleTeacher]) -> Answers:
    asked = torch.ones(len(images), len(teachers), dtype=torch.bool)
    return Answers(images, [teacher.predict(images) for teacher in teachers], asked)


def test_classes_are_what_each_api_named_what_it_was_asked() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2).contiguous()
    first, second = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.0, 1.0]]), torch.eye(2)[[0, 0, 1, 1]]
    asked = torch.tensor([[True, False], [True, True], [True, False], [False, False]])
    memory = episodes.named(Answers(images, [first, second], asked))
    assert (len(memory), memory.images, memory.able(2)) == (3, 4, 1)
    held = {known: [int(image[0, 0, 0]) for image in shown] for known, shown in memory.state_dict().items()}
    assert held == {(0, 0): [0, 2], (0, 1): [1], (1, 0): [1]}


def test_they_teach_an_untrained_network(blobs: Dataset, blob_teachers: list[ModuleTeacher]) -> None:
    answers = answers_of(blobs.images("train")[:, :8].flatten(0, 1), blob_teachers)
    backbone = build(CONFIG, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in weights(backbone).items()}
    rehearsal = episodes.Rehearsal(backbone, torch.optim.Adam(backbone.parameters(), lr=3e-3), answers)
    generator = torch.Generator().manual_seed(0)
    right = [rehearsal.episode(generator) for _ in range(60)]
    assert sum(right[-20:]) > sum(right[:20]) + 2
    after = weights(backbone)
    assert all(not torch.equal(after[name], before[name]) for name in after if name.endswith("weight"))
    assert all(torch.equal(after[name], before[name]) for name in after if "running" in name)


def test_too_few_images_for_a_task_leave_the_network_as_it_was_distilled(
    images: Tensor, blob_teachers: list[ModuleTeacher]
) -> None:
    answers = answers_of(images[:8], blob_teachers[:1])
    plain, tried = (pqd.distil(answers, CONFIG, PqdOptions(steps=3, batch=8, episodes=n), seed=0) for n in (0, 5))
    one, two = weights(plain.backbone), weights(tried.backbone)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "episodes" not in tried.metrics


def test_a_method_with_them_is_better_than_its_start(blobs: Dataset, blob_teachers: list[ModuleTeacher]) -> None:
    answers = answers_of(blobs.images("train").flatten(0, 1)[::3], blob_teachers)
    done = pqd.distil(answers, CONFIG, PqdOptions(steps=60, batch=32, episodes=20), seed=0)
    evaluation = Evaluation(dataset="blobs", ways=3, shots=[5], episodes=50)
    assert evaluate(done.backbone, blobs, evaluation).accuracy["5"] > 60
    assert "episodes" in done.metrics
