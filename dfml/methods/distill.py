"""Baselines that distil answers about images at hand: one API alone, and the mean of what each API alone gives.

`average` is the Distill-Avg of BiDf-MKD's tables, with procedural images in the place of recovered ones. Every network begins
with the same weights, without which a mean of weights means nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import DistillAverageOptions
from dfml.augmentation import augment
from dfml.checkpoint import Checkpoint
from dfml.memory import Answers
from dfml.methods.pqd import ask
from dfml.nets import Backbone, build
from dfml.nets.learner import Learner, build_learner
from dfml.numerics.distillation import divergence
from dfml.numerics.inner_loop import set_running_statistics
from dfml.plans import Limits, plan
from dfml.procedural import query_set
from dfml.teachers import Teacher
from dfml.training import Training

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each step with (steps done, steps in all, metrics); it may raise to stop."""


@dataclass(frozen=True)
class Averaged:
    """`backbone`: the mean, in evaluation mode. `metrics`: `loss`, the mean of the networks' last."""

    backbone: Backbone
    metrics: dict[str, float]


def train(
    teachers: Sequence[Teacher],
    config: BackboneConfig,
    options: DistillAverageOptions,
    *,
    queries: int,
    queries_per_api: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Averaged:
    """The whole method on teachers at hand. Asks them about `queries` images in all, at most."""
    planned = plan(options, Limits(queries, len(teachers), queries_per_api), seed=seed)
    pool = query_set(options.mixture, seed=seed, size=teachers[0].input_shape[1:])
    images = torch.from_numpy(pool.images(range(planned.images)))
    return distil(ask(teachers, images, planned), config, options, seed=seed, device=device, on_step=on_step)


def distil(
    answers: Answers,
    config: BackboneConfig,
    options: DistillAverageOptions,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> Averaged:
    """The mean of one network an API; running statistics are measured anew on the pool.

    checkpoint: where the sum of the networks that are done is kept; one that is of the same training is gone on from, to the
    same weights as without the interruption.
    Raises ValueError where no API answered two images.
    """
    shown = [api for api in range(len(answers.ways)) if int(answers.asked[:, api].sum()) >= 2]
    if not shown:
        raise ValueError("no API answered two images, which is the least to learn from: raise the budget")
    training = Training(
        checkpoint,
        [config.model_dump(), options.model_dump(), seed],
        (answers.images, answers.asked, *answers.probabilities),
    )
    start = _start(config, answers, seed).state_dict()
    total = training.values.get("total") or {name: torch.zeros_like(value) for name, value in start.items()}
    loss: float = training.values.get("loss", 0.0)
    for done in range(training.done, len(shown)):
        asked = answers.asked[:, shown[done]]

        def tell(step: int, _: int, metrics: dict[str, float], before: int = done * options.steps) -> None:
            if on_step is not None:
                on_step(before + step, len(shown) * options.steps, metrics)

        learner, last = one(
            answers.images[asked],
            answers.probabilities[shown[done]][asked],
            config,
            seed=seed,
            steps=options.steps,
            batch=options.batch,
            rate=options.learning_rate,
            device=device,
            on_step=tell,
        )
        for name, value in learner.backbone.cpu().state_dict().items():
            total[name] += value / len(shown) if value.is_floating_point() else 0
        loss += last / len(shown)
        training.keep(done + 1, total=total, loss=loss)
    backbone = _start(config, answers, seed)
    backbone.load_state_dict(total)
    set_running_statistics(backbone, torch.split(answers.images, 64))
    return Averaged(backbone.to(device).eval(), {"loss": loss})


def one(
    images: Tensor,
    answers: Tensor,
    config: BackboneConfig,
    *,
    seed: int,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 5e-3,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> tuple[Learner, float]:
    """A fresh network that learns `answers` (n, ways) about `images`, uint8 (n, 3, h, w), and its last loss.

    KL, AdamW, one cycle, flips and shifts. The same seed begins with the same backbone, whatever the ways.
    """
    answers, images = answers.to(device), images.to(device)
    generator = torch.Generator().manual_seed(seed)
    _, channels, height, width = images.shape
    learner = build_learner(config, (channels, height, width), ways=answers.shape[1], generator=generator)
    learner.to(device).train()
    optimiser = torch.optim.AdamW(learner.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    last = 0.0
    for step in range(steps):
        chosen = torch.randperm(len(images), generator=generator)[:batch].to(device)
        shown = augment(images[chosen], flip=True, shift=2, generator=generator)
        loss = divergence(answers[chosen], learner(shown))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        last = loss.item()
        if on_step is not None:
            on_step(step + 1, steps, {"loss": last})
    return learner.eval(), last


def _start(config: BackboneConfig, answers: Answers, seed: int) -> Backbone:
    _, channels, height, width = answers.images.shape
    return build(config, (channels, height, width), generator=torch.Generator().manual_seed(seed))
