"""Inversion: every term against its formula, and recovered images that the teacher knows."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfml.numerics.inversion import (
    Terms,
    batch_norm_gap,
    disagreement,
    inversion_loss,
    invert_images,
    roll,
    total_variation,
)
from dfml.teachers import BatchStatistics, ModuleTeacher, Teacher, WhiteBoxTeacher

MakeTeacher = Callable[..., ModuleTeacher]


def test_total_variation_of_a_step() -> None:
    """One white pixel of a 2x2 image: each direction meets it where it has a pair."""
    images = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert total_variation(images).item() == pytest.approx(1 + 1 + 1 + 0)
    assert total_variation(torch.full((2, 3, 4, 4), 0.3)).item() == 0


def test_batch_norm_gap_by_hand() -> None:
    met = BatchStatistics(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0]), torch.zeros(2), torch.tensor([1.0, 3.0]))
    assert batch_norm_gap([met, met]).item() == pytest.approx(2 * (5 + 2))


def test_inspect_gives_the_statistics_of_every_batch_norm(
    make_teacher: MakeTeacher, generator: torch.Generator
) -> None:
    teacher = make_teacher(0)
    images = torch.rand(4, 3, 16, 16, generator=generator)
    logits, statistics = teacher.inspect(images)
    assert torch.equal(logits, teacher.logits(images))
    assert len(statistics) == 4
    first = teacher.module.body.blocks[0]  # type: ignore[union-attr, index]
    before = first.conv(teacher.module.normalise(images))  # type: ignore[operator, union-attr]
    assert torch.allclose(statistics[0].mean, before.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(statistics[0].variance, before.var((0, 2, 3), correction=0), atol=1e-6)
    assert not any(norm._forward_pre_hooks for norm in teacher.module.modules())


def test_the_loss_is_the_sum_of_its_terms(make_teacher: MakeTeacher, generator: torch.Generator) -> None:
    teacher, labels = make_teacher(0), torch.tensor([0, 1, 2, 0])
    images = torch.rand(4, 3, 16, 16, generator=generator)
    logits, statistics = teacher.inspect(images)
    u = (images - 0.5) / 0.25
    expected = F.cross_entropy(logits, labels) + 2 * total_variation(u) + 3 * batch_norm_gap(statistics) + 5 * u.norm()
    given = inversion_loss(teacher, images, labels, Terms(total_variation=2, batch_norm=3, length=5))
    assert given.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(given.logits, logits)


def test_a_teacher_without_batch_norm_is_inverted_all_the_same(generator: torch.Generator) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    nn.init.normal_(module[1].weight, generator=generator)  # type: ignore[arg-type]
    teacher = ModuleTeacher(module, ways=2, input_shape=(3, 16, 16))
    labels = torch.tensor([0, 1])
    found = invert_images(teacher, labels, steps=20, generator=generator, shift=0, flip=False)
    assert teacher.predict(found.images).argmax(-1).tolist() == [0, 1]


def test_recovered_images_are_known_to_the_teacher(blob_teachers: list[ModuleTeacher]) -> None:
    teacher, labels = blob_teachers[0], torch.arange(3).repeat(4)

    def recover() -> torch.Tensor:
        return invert_images(teacher, labels, steps=40, generator=torch.Generator().manual_seed(1)).images

    images = recover()
    assert images.min() >= 0
    assert images.max() <= 1
    assert (teacher.predict(images).argmax(-1) == labels).double().mean() > 0.9
    assert torch.equal(images, recover())


def test_the_statistics_term_brings_the_statistics_nearer(blob_teachers: list[ModuleTeacher]) -> None:
    teacher, labels = blob_teachers[0], torch.arange(3).repeat(4)
    gaps = []
    for weight in (0.0, 1.0):
        terms = Terms(total_variation=0, batch_norm=weight, length=0)
        found = invert_images(teacher, labels, steps=30, generator=torch.Generator().manual_seed(1), terms=terms)
        gaps.append(batch_norm_gap(teacher.inspect(found.images)[1]).item())
    assert gaps[1] < 0.5 * gaps[0]


def test_passes_are_counted_and_nothing_leaks_into_the_teacher(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(0)
    before = {name: tensor.clone() for name, tensor in teacher.module.state_dict().items()}
    invert_images(teacher, torch.arange(3), steps=7, generator=torch.Generator().manual_seed(0))
    assert (teacher.queries, teacher.forward_passes, teacher.backward_passes) == (0, 21, 21)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.module.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    teacher.predict(torch.zeros(2, 3, 16, 16))
    assert (teacher.queries, teacher.forward_passes, teacher.backward_passes) == (2, 23, 21)


def test_white_box_is_a_fact_of_the_types(make_teacher: MakeTeacher) -> None:
    class BlackBox:
        ways, input_shape, queries = 2, (3, 16, 16), 0

        def predict(self, images: torch.Tensor) -> torch.Tensor:
            return images

    assert isinstance(make_teacher(0), WhiteBoxTeacher)
    assert isinstance(BlackBox(), Teacher)
    assert not isinstance(BlackBox(), WhiteBoxTeacher)


def test_logits_check_what_they_get(make_teacher: MakeTeacher) -> None:
    with pytest.raises(ValueError, match=r"send float \(n, 3, 16, 16\)"):
        make_teacher(0).logits(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(TypeError, match="give a Classifier"):
        ModuleTeacher(nn.Flatten(), ways=2, input_shape=(3, 16, 16)).weights()


def test_disagreement_counts_agreeing_images_alone_and_its_gradient_stays_with_the_teacher() -> None:
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]], requires_grad=True)
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = disagreement(teacher, student)
    expected = F.kl_div(student[:1].log_softmax(-1), teacher[:1].softmax(-1), reduction="sum") / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (slope,) = torch.autograd.grad(loss, [teacher])
    assert slope[1].abs().sum() == 0
    assert slope[0, 0] > 0


def test_roll_moves_and_mirrors_the_whole_batch(generator: torch.Generator) -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator)
    for _ in range(10):
        moved = roll(images, shift=2, flip=True, generator=generator)
        assert torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values)
    assert torch.equal(roll(images, shift=0, flip=False, generator=generator), images)
