"""OTA: a permuted copy is found again, and transport is a plan."""

import torch

from contracts.meta_models import BackboneConfig
from dfml.fusion import aligned_average, average, transplant, transport
from dfml.nets import build_classifier, load_weights, weights
from dfml.teachers import ModuleTeacher


def test_a_plan_carries_uniform_to_uniform_and_prefers_the_near() -> None:
    cost = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    plan = transport(cost, spread=0.1)
    assert torch.allclose(plan.sum(0), torch.ones(6), atol=1e-4)
    assert torch.allclose(plan.sum(1), torch.ones(6), atol=1e-4)
    assert (plan * cost).sum() < cost.mean() * 6


def test_a_teacher_and_its_copy_of_shuffled_channels_average_to_the_teacher(make_teacher) -> None:  # type: ignore[no-untyped-def]
    teacher = make_teacher(0)
    held = teacher.weights()
    last = None
    for block in range(4):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(block))
        norms = [f"blocks.{block}.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        names = [f"blocks.{block}.conv.weight", *norms]
        if last is not None:
            held[names[0]] = held[names[0]][:, last]
        for name in names:
            held[name] = held[name][order]
        last = order
    net = build_classifier(16, (3, 16, 16), 3, normalisation=teacher.normalisation(), generator=torch.Generator())
    load_weights(net, held)
    shuffled = ModuleTeacher(net, ways=3, input_shape=(3, 16, 16))
    config = BackboneConfig(width=16)
    wanted = weights(transplant(teacher, config))
    got = weights(aligned_average([teacher, shuffled], config, spread=1e-3))
    plain = weights(average([teacher, shuffled], config))
    assert all(torch.allclose(got[name], wanted[name], atol=1e-3) for name in wanted)
    assert not torch.allclose(plain["blocks.1.conv.weight"], wanted["blocks.1.conv.weight"], atol=1e-2)
