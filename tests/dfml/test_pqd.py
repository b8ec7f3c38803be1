from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import PqdOptions
from dfml.datasets import open_dataset
from dfml.evaluate import evaluate, evaluate_random
from dfml.memory import Answers
from dfml.methods import METHODS, pqd
from dfml.nets import weights
from dfml.plans import Limits, plan
from dfml.supervised import train_classifier
from dfml.teachers import ModuleTeacher

MakeTeacher = Callable[..., ModuleTeacher]
FEW = PqdOptions(steps=4, batch=16)


@pytest.fixture
def teachers(make_teacher: MakeTeacher) -> list[ModuleTeacher]:
    return [make_teacher(seed, ways=ways) for seed, ways in enumerate((3, 5, 2))]


def test_the_table_of_methods() -> None:
    assert (METHODS["pqd"].train, METHODS["pqd"].distil) == (pqd.train, pqd.distil)


def test_the_same_seed_gives_the_same_weights(teachers: list[ModuleTeacher], tiny: BackboneConfig) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        return weights(pqd.train(teachers, tiny, FEW, queries=90, seed=seed).backbone)

    one, two, other = run(1), run(1), run(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["blocks.0.conv.weight"], other["blocks.0.conv.weight"])


def test_what_is_asked_is_what_was_planned(teachers: list[ModuleTeacher], images: Tensor) -> None:
    planned = plan(PqdOptions(apis_per_image=2), Limits(70, 3), seed=0)
    answers = pqd.ask(teachers, images[: planned.images], planned)
    assert answers.queries == planned.queries == sum(teacher.queries for teacher in teachers) <= 70
    for api, (teacher, indices) in enumerate(zip(teachers, planned.assigned, strict=True)):
        assert answers.asked[:, api].nonzero()[:, 0].tolist() == indices.tolist()
        expected = teacher.predict(images[torch.from_numpy(indices)])
        assert torch.equal(answers.probabilities[api][answers.asked[:, api]], expected)
        assert not answers.probabilities[api][~answers.asked[:, api]].any()


def test_the_loss_on_a_batch_against_a_loop(teachers: list[ModuleTeacher], images: Tensor) -> None:
    """Three APIs of 3, 5 and 2 classes, two for each image: every term written out."""
    planned = plan(PqdOptions(apis_per_image=2), Limits(80, 3), seed=0)
    answers = pqd.ask(teachers, images, planned)
    chosen = torch.tensor([3, 0, 7, 21, 30])
    features = torch.randn(5, 6)
    head = torch.nn.Linear(6, 10)
    targets = pqd._targets(answers, torch.ones(40, dtype=torch.bool), PqdOptions(), torch.device("cpu"))
    got_answers, got_relation = pqd.losses(
        features, pqd.predicted(features, head, answers.ways), targets, chosen, answers.ways
    )

    got_accuracy = pqd.accuracy(pqd.predicted(features, head, answers.ways), targets, chosen, answers.ways)

    squares, right, profile = [], [], [[None] * 3 for _ in range(5)]
    for api, ways in enumerate(answers.ways):
        start = sum(answers.ways[:api])
        asked = answers.asked[:, api]
        p = answers.probabilities[api]
        z = p.clamp_min(1e-4).log()
        z = z - z.mean(1, keepdim=True)
        z = z / z[asked].std()
        for row, image in enumerate(chosen.tolist()):
            if asked[image]:
                out = head(features[row])[start : start + ways]
                squares += (out - out.mean() - z[image]).square().tolist()
                right.append(out.argmax().item() == p[image].argmax().item())
                profile[row][api] = p[image] - p[asked].mean(0)  # type: ignore[call-overload]
    assert got_answers.item() == pytest.approx(np.mean(squares), rel=1e-4)
    assert got_accuracy == pytest.approx(np.mean(right))

    centred = features - features.mean(0)
    wanted, got, weight = [], [], []
    for i in range(5):
        for j in range(5):
            both = [api for api in range(3) if profile[i][api] is not None and profile[j][api] is not None]
            if i != j and both:
                left = torch.cat([profile[i][api] for api in both])  # type: ignore[misc]
                right = torch.cat([profile[j][api] for api in both])  # type: ignore[misc]
                wanted.append(F.cosine_similarity(left, right, dim=0).item())
                got.append(F.cosine_similarity(centred[i], centred[j], dim=0).item())
                weight.append(len(left))
    mean = np.average(wanted, weights=weight)
    variance = np.average((np.array(wanted) - mean) ** 2, weights=weight)
    error = np.average((np.array(got) - np.array(wanted)) ** 2, weights=weight)
    assert got_relation.item() == pytest.approx(error / variance, rel=1e-3)


@pytest.mark.parametrize("apis_per_image", [2, 3])
def test_an_api_of_labels_alone_is_learned_by_cross_entropy(
    teachers: list[ModuleTeacher], images: Tensor, apis_per_image: int
) -> None:
    """The second of three, beside two of full answers: every term written out."""
    planned = plan(PqdOptions(apis_per_image=apis_per_image), Limits(40 * apis_per_image, 3), seed=0)
    whole = pqd.ask(teachers, images, planned)
    given = list(whole.probabilities)
    given[1] = F.one_hot(torch.arange(40) % 5, 5).float() * whole.asked[:, 1, None]
    answers = Answers(images, given, whole.asked)
    chosen = torch.tensor([3, 0, 7, 21, 30])
    features, head = torch.randn(5, 6), torch.nn.Linear(6, 10)
    targets = pqd._targets(answers, torch.ones(40, dtype=torch.bool), PqdOptions(), torch.device("cpu"))
    got, _ = pqd.losses(features, pqd.predicted(features, head, answers.ways), targets, chosen, answers.ways)
    errors, weights_of = [], []
    for api, ways in enumerate(answers.ways):
        start, asked = sum(answers.ways[:api]), answers.asked[:, api]
        trusted = 1.0 if targets.trust is None else targets.trust[start].item()
        z = given[api].clamp_min(1e-4).log()
        z = z - z.mean(1, keepdim=True)
        z = z / z[asked].std()
        for row, image in enumerate(chosen.tolist()):
            out = head(features[row])[start : start + ways]
            if asked[image] and api == 1:
                errors += [F.cross_entropy(out, given[1][image].argmax()).item()] * ways
            elif asked[image]:
                errors += (out - out.mean() - z[image]).square().tolist()
            weights_of += [trusted] * ways * int(asked[image])
    assert got.item() == pytest.approx(np.average(errors, weights=weights_of), rel=1e-4)


def test_images_nobody_answered_change_nothing(
    teachers: list[ModuleTeacher], images: Tensor, tiny: BackboneConfig
) -> None:
    planned = plan(PqdOptions(), Limits(90, 3), seed=0)
    whole = pqd.ask(teachers, images[:30], planned)
    padded = Answers(images, [F.pad(p, (0, 0, 0, 10)) for p in whole.probabilities], F.pad(whole.asked, (0, 0, 0, 10)))
    one, two = (weights(pqd.distil(answers, tiny, FEW, seed=0).backbone) for answers in (whole, padded))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_api_that_never_answered_is_no_obstacle(
    teachers: list[ModuleTeacher], images: Tensor, tiny: BackboneConfig
) -> None:
    planned = plan(PqdOptions(), Limits(90, 3), seed=0)
    answers = pqd.ask(teachers, images[:30], planned)
    asked = answers.asked.clone()
    asked[:, 1] = False
    held = [p if api != 1 else torch.zeros_like(p) for api, p in enumerate(answers.probabilities)]
    result = pqd.distil(Answers(answers.images, held, asked), tiny, FEW, seed=0)
    assert np.isfinite(result.metrics["loss"])


def test_answers_that_come_later_are_taken_in(
    teachers: list[ModuleTeacher], images: Tensor, tiny: BackboneConfig
) -> None:
    planned = plan(FEW, Limits(90, 3), seed=0)
    whole = pqd.ask(teachers, images[: planned.images], planned)
    asked = whole.asked[:, [2, 0]]
    asked[::2] = False
    part = Answers(whole.images, [whole.probabilities[2], whole.probabilities[0]], asked)
    order = [2, 0, 1]  # those that came first keep their places
    later = Answers(whole.images, [whole.probabilities[api] for api in order], whole.asked[:, order])

    def run(more: Any) -> pqd.Distilled:
        return pqd.distil(part, tiny, FEW, seed=0, more=more)

    one, two = (run(lambda step, _: later if step == 2 else None) for _ in range(2))
    never, sooner = run(lambda *_: None), run(lambda step, _: later if step == 1 else None)
    first, second = weights(one.backbone), weights(two.backbone)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one.head.out_features, never.head.out_features) == (sum(whole.ways), sum(part.ways))
    assert one.head.weight.shape == (sum(whole.ways), one.backbone.dim)
    for other in (never, sooner):
        assert not torch.equal(
            weights(one.backbone)["blocks.0.conv.weight"], weights(other.backbone)["blocks.0.conv.weight"]
        )


@pytest.mark.parametrize(("queries", "each", "shown"), [(60, 3, 20), (300, 3, 40), (90, 1, 40)])
def test_ones_own_images_can_be_asked_about(
    teachers: list[ModuleTeacher], images: Tensor, tiny: BackboneConfig, queries: int, each: int, shown: int
) -> None:
    """40 of them: some, all, and all though the budget would have had more; none twice, none else."""
    seen: list[Tensor] = []
    for teacher in teachers:
        answer = teacher.predict
        teacher.predict = lambda asked, answer=answer: (seen.append(asked), answer(asked))[1]
    pqd.train(
        teachers, tiny, FEW.model_copy(update={"apis_per_image": each}), queries=queries, seed=0, unlabelled=images
    )
    counts = [(torch.cat(seen) == image).flatten(1).all(1).sum().item() for image in images]
    assert sorted(counts) == [0] * (40 - shown) + [each] * shown
    assert sum(counts) == sum(teacher.queries for teacher in teachers) <= queries


def test_images_of_ones_own_that_do_not_fit_are_refused_before_anything_is_asked(
    teachers: list[ModuleTeacher], images: Tensor, tiny: BackboneConfig
) -> None:
    for wrong in (images[:, :, :8], images.float() / 255):
        with pytest.raises(ValueError, match=r"send \(n, 3, 16, 16\)|give uint8"):
            pqd.train(teachers, tiny, FEW, queries=60, seed=0, unlabelled=wrong)
    assert not any(teacher.queries for teacher in teachers)


def test_progress_is_reported_and_can_stop(teachers: list[ModuleTeacher], tiny: BackboneConfig) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_two(step: int, steps: int, metrics: dict[str, float]) -> None:
        assert set(metrics) == {"loss", "answers", "relation", "accuracy"}
        seen.append((step, steps))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pqd.train(teachers, tiny, FEW, queries=90, seed=0, on_step=stop_at_two)
    assert seen == [(1, 4), (2, 4)]


@pytest.mark.parametrize(
    "options",
    [
        PqdOptions(steps=2, batch=4, relation=0.0, flip=False, shift=0),
        PqdOptions(steps=2, images=16, mixture={"spectra": 1.0}, floor=0.01, learning_rate=1e-3, weight_decay=0.0),
        PqdOptions(steps=1, batch=4096, shift=16),
    ],
)
def test_every_option_is_taken(teachers: list[ModuleTeacher], tiny: BackboneConfig, options: PqdOptions) -> None:
    result = pqd.train(teachers, tiny, options, queries=60, seed=0)
    assert np.isfinite(list(result.metrics.values())).all()
    assert not result.backbone.training


def test_a_resnet_learns_too(teachers: list[ModuleTeacher]) -> None:
    config = BackboneConfig(backbone="resnet10", width=16)
    first, last = [], []
    pqd.train(
        teachers,
        config,
        PqdOptions(steps=30, batch=16),
        queries=90,
        seed=0,
        on_step=lambda step, steps, metrics: (first if step <= 5 else last).append(metrics["answers"]),
    )
    assert np.mean(last[-5:]) < np.mean(first)


def test_a_small_pool_is_left_as_it_is_and_a_large_one_stretched(
    teachers: list[ModuleTeacher], tiny: BackboneConfig
) -> None:
    few, many = (pqd.recipe(FEW, tiny, images=images) for images in (pqd.MANY - 1, pqd.MANY))
    assert (few.shift, few.scale) < (many.shift, many.scale)
    assert few.weight_decay < many.weight_decay
    for usual in (few, many):
        written = FEW.model_copy(update=asdict(usual))
        one, same = (
            weights(pqd.train(teachers, tiny, options, queries=90, seed=0).backbone) for options in (FEW, written)
        )
        assert all(torch.equal(one[name], same[name]) for name in one) == (usual is few)


def test_large_pools_are_learned_for_longer_and_resnets_more_slowly() -> None:
    free, config = PqdOptions(), BackboneConfig()
    steps = [pqd.recipe(free, config, images=images).steps for images in (16, 384, 640, 1536, 2048, 10**6)]
    assert steps == [1500, 2250, 3000, 6000, 9000, 9000]
    rates = [
        pqd.recipe(free, network, images=16).learning_rate for network in (config, BackboneConfig(backbone="resnet10"))
    ]
    assert rates == [8e-3, 5e-3]


def test_what_the_options_say_of_the_recipe_is_done() -> None:
    said = {"steps": 7, "learning_rate": 0.25, "shift": 0, "scale": 0.0, "weight_decay": 0.0}
    assert asdict(pqd.recipe(PqdOptions(**said), BackboneConfig(), images=pqd.MANY)) == said


def test_too_few_answers_say_so(teachers: list[ModuleTeacher], images: Tensor, tiny: BackboneConfig) -> None:
    nothing = Answers(images, [torch.zeros(40, 2)], torch.zeros(40, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="raise the budget"):
        pqd.distil(nothing, tiny, FEW, seed=0)


def test_answers_that_do_not_fit_together_are_refused(images: Tensor) -> None:
    asked = torch.ones(40, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"probabilities\[0\]: expected float32 \(40"):
        Answers(images, [torch.zeros(39, 2)], asked)
    with pytest.raises(ValueError, match="asked"):
        Answers(images, [torch.zeros(40, 2), torch.zeros(40, 2)], asked)
    with pytest.raises(ValueError, match="NaN"):
        Answers(images, [torch.full((40, 2), float("nan"))], asked)
    with pytest.raises(ValueError, match="images"):
        Answers(images.float(), [torch.zeros(40, 2)], asked)


def test_better_than_random_on_a_toy(tiny: BackboneConfig) -> None:
    """Two small teachers of glyphs, 100 images each, 60 steps: seconds, and well above an untrained network."""
    dataset = open_dataset("glyphs", None)
    shown = dataset.images("val")
    teachers = []
    for seed in range(2):
        net, _ = train_classifier(
            shown[seed * 8 : seed * 8 + 8, :50], config=tiny, seed=seed, epochs=8, learning_rate=2e-2
        )
        teachers.append(ModuleTeacher(net, ways=8, input_shape=(3, 32, 32)))
    evaluation = Evaluation(dataset="glyphs", split="val", shots=[5], episodes=60)
    result = pqd.train(teachers, tiny, PqdOptions(steps=60, batch=32), queries=400, seed=0)
    mine = evaluate(result.backbone, dataset, evaluation)
    untrained = evaluate_random(tiny, (3, 32, 32), dataset, evaluation, seeds=(0,))
    assert mine.accuracy["5"] > untrained.accuracy["5"] + mine.interval["5"] + untrained.interval["5"]


def test_apis_that_were_asked_nothing_do_not_blur_who_is_trusted() -> None:
    random = torch.Generator().manual_seed(0)
    seen = torch.randn(200, 8, generator=random)  # what honest APIs see in an image
    honest = [(3 * seen @ torch.randn(8, 5, generator=random)).softmax(1) for _ in range(5)]
    useless = torch.randn(200, 5, generator=random).softmax(1)
    images = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)

    def trusted(apis: list[Tensor], idle: int) -> Tensor:
        asked = torch.zeros(200, len(apis) + idle, dtype=torch.bool)
        asked[:, : len(apis)] = True
        answers = Answers(images, [*apis, *(torch.zeros(200, 5) for _ in range(idle))], asked)
        found = pqd._targets(answers, torch.ones(200, dtype=torch.bool), PqdOptions(), torch.device("cpu")).trust
        assert found is not None
        return found[: 5 * len(apis)]

    alone = trusted([*honest, useless], 0)
    assert alone[-1] < 0.5 < alone[0]
    assert torch.equal(trusted([*honest, useless], 30), alone)


def test_bfloat16_learns_nearly_the_same_and_leaves_float32_weights(
    teachers: list[ModuleTeacher], tiny: BackboneConfig
) -> None:
    def learned(precision: str) -> pqd.Distilled:
        options = PqdOptions.model_validate({"steps": 30, "batch": 16, "precision": precision})
        return pqd.train(teachers, tiny, options, queries=90, seed=0)

    full, half, again = learned("float32"), learned("bfloat16"), learned("bfloat16")
    assert {tensor.dtype for tensor in weights(half.backbone).values()} == {torch.float32}
    assert all(torch.equal(one, weights(again.backbone)[name]) for name, one in weights(half.backbone).items())
    assert half.metrics["loss"] != full.metrics["loss"]
    assert half.metrics["loss"] == pytest.approx(full.metrics["loss"], rel=0.3)
