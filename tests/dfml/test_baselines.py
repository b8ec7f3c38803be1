"""The baselines: each gives what its name says, and the trained ones beat an untrained network on a toy."""

import pytest
import torch

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import DistillAverageOptions
from dfml.datasets import Dataset
from dfml.evaluate import evaluate
from dfml.fusion import transplant
from dfml.memory import Answers
from dfml.methods import METHODS, baselines, distill
from dfml.methods.pqd import ask
from dfml.nets import weights
from dfml.plans import Limits, plan
from dfml.procedural import query_set
from dfml.teachers import ModuleTeacher

CONFIG = BackboneConfig(width=16)
SHAPE = (3, 16, 16)


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(dataset="blobs", ways=3, shots=[5], episodes=50)


@pytest.fixture
def untrained(blobs: Dataset, evaluation: Evaluation) -> float:
    """Upper end of an untrained network's interval."""
    score = evaluate(baselines.random_initialisation(CONFIG, SHAPE, seed=0), blobs, evaluation)
    return score.accuracy["5"] + score.interval["5"]


def test_the_best_single_teacher_is_the_one_stated_best(blob_teachers: list[ModuleTeacher]) -> None:
    best = baselines.best_single(blob_teachers, CONFIG, held_out_accuracies=[0.3, 0.9, 0.8, 0.1])
    wanted = transplant(blob_teachers[1], CONFIG)
    assert all(torch.equal(tensor, weights(wanted)[name]) for name, tensor in weights(best).items())


def test_outputs_as_features_ask_every_api_about_every_image(
    blobs: Dataset, blob_teachers: list[ModuleTeacher], evaluation: Evaluation, untrained: float
) -> None:
    features = baselines.OutputsAsFeatures(blob_teachers)
    before = [teacher.queries for teacher in blob_teachers]
    score = evaluate(features, blobs, evaluation)
    assert [teacher.queries - count for teacher, count in zip(blob_teachers, before, strict=True)] == [480] * 4
    assert features.dim == 12
    assert score.accuracy["5"] > untrained + score.interval["5"]


def test_one_teacher_can_be_distilled(blobs: Dataset, blob_teachers: list[ModuleTeacher]) -> None:
    images = blobs.images("train")[:3].flatten(0, 1)
    before = blob_teachers[0].queries
    learner = baselines.single_teacher(blob_teachers[0], CONFIG, images=images, seed=0, steps=40, batch=32)
    assert blob_teachers[0].queries - before == 120
    with torch.no_grad():
        right = (learner(images).argmax(-1) == torch.arange(3).repeat_interleave(40)).double().mean().item()
    assert right > 0.7


def test_real_data_is_a_ceiling(blobs: Dataset, evaluation: Evaluation, untrained: float) -> None:
    score = evaluate(baselines.real_data(blobs.images("train"), CONFIG, seed=0, epochs=5), blobs, evaluation)
    assert score.accuracy["5"] > untrained + score.interval["5"]


def test_the_average_needs_one_architecture(blob_teachers: list[ModuleTeacher]) -> None:
    assert baselines.weight_average(blob_teachers, CONFIG).dim == 16
    with pytest.raises(ValueError, match="do not fit this network"):
        baselines.weight_average(blob_teachers, BackboneConfig(width=64))


def test_a_mean_of_distilled_networks_is_their_mean(blob_teachers: list[ModuleTeacher]) -> None:
    """With one API it is that API's network; its budget is kept to, and it can be stopped."""
    options = DistillAverageOptions(steps=4, batch=8)
    teachers = blob_teachers[:2]
    before = [teacher.queries for teacher in teachers]
    seen: list[tuple[int, int]] = []
    both = METHODS["distill_average"].train(
        teachers, CONFIG, options, queries=60, seed=0, on_step=lambda done, total, _: seen.append((done, total))
    )
    assert sum(teacher.queries for teacher in teachers) - sum(before) <= 60
    assert seen == [(step, 8) for step in range(1, 9)]
    planned = plan(options, Limits(60, 2), seed=0)
    pool = torch.from_numpy(query_set(options.mixture, seed=0, size=(16, 16)).images(range(planned.images)))
    answers = ask(teachers, pool, planned)
    alone = []
    for api in range(2):
        asked = answers.asked[:, api]
        learner, _ = distill.one(
            pool[asked], answers.probabilities[api][asked], CONFIG, seed=0, steps=4, batch=8, rate=options.learning_rate
        )
        alone.append(weights(learner.backbone)["blocks.2.conv.weight"])
    assert torch.allclose(weights(both.backbone)["blocks.2.conv.weight"], (alone[0] + alone[1]) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="no API answered two images"):
        distill.distil(
            Answers(pool[:1], [torch.ones(1, 3) / 3], torch.ones(1, 1, dtype=torch.bool)), CONFIG, options, seed=0
        )
