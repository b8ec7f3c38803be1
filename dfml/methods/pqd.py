"""Procedural query distillation: ask every API about images made from a seed, distil all answers into one backbone.

Our own method; `docs/methods/pqd.md` holds its equations, what each option does to accuracy, and the numbers to expect.
The backbone that learns the answers of all APIs, each through a linear head of its own, is the meta-model.

    train = query set -> plan -> ask -> distil

The service does the first three over HTTP, within a budget, and calls `distil` on what came back.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from contracts.methods import PqdOptions
from dfml import episodes
from dfml.augmentation import warp
from dfml.checkpoint import Checkpoint
from dfml.memory import Answers
from dfml.nets import Backbone, build
from dfml.nets.head import build_head, widen
from dfml.numerics.agreement import agreement, trust
from dfml.numerics.distillation import (
    centre_by_group,
    cosines,
    largest_by_group,
    log_probabilities,
    log_softmax_by_group,
    masked_mean,
    relational,
    rounding_unit,
    standardised,
)
from dfml.numerics.inner_loop import set_running_statistics
from dfml.plans import Limits, Plan, fitted, plan
from dfml.procedural import query_set
from dfml.spill import chosen as chosen_images
from dfml.teachers import Teacher, check_images
from dfml.training import Training
from dfml.unlabelled import order as unlabelled_order

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each step with (steps done, steps in all, metrics); it may raise to stop."""

More = Callable[[int, int], Answers | None]
"""Called before each step with (steps done, steps in all): all answers there are by now if more have come, else None.

APIs already there keep their places; new ones come behind them. It may wait, and it may raise to stop.
"""


@dataclass(frozen=True)
class Distilled:
    """`backbone`: the meta-model, in evaluation mode on the device it was trained on.

    `head`: a linear layer from its features to the standardised logits of all APIs' classes, API after API.
    `metrics`: means over the last tenth of the steps, as `on_step` gave them.
    """

    backbone: Backbone
    head: nn.Linear
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Targets:
    """answers: standardised logits (n, ways of all APIs); seen: 0/1, same shape, None where every API saw every image;
    profile: probabilities less their mean over the pool, zero where not seen, times the trust in their API;
    trust: of the API of each entry (ways of all APIs,), None where all are trusted fully;
    labels: of APIs that give labels alone ways times the one-hot label, NaN elsewhere; None where there is no such API."""

    answers: Tensor
    seen: Tensor | None
    profile: Tensor
    trust: Tensor | None
    labels: Tensor | None


def train(
    teachers: Sequence[Teacher],
    config: BackboneConfig,
    options: PqdOptions,
    *,
    queries: int,
    queries_per_api: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    unlabelled: Tensor | None = None,
) -> Distilled:
    """The whole method on teachers at hand. Asks them about `queries` images in all, at most.

    unlabelled: images to ask about in place of those made from the seed, uint8 (n, 3, h, w): as many as the budget allows,
    drawn at random, none twice; where there are fewer, each goes to more APIs. Raises ValueError where they do not fit.
    """
    shape = teachers[0].input_shape
    limits = Limits(queries, len(teachers), queries_per_api)
    planned = plan(options, limits, seed=seed)
    if unlabelled is None:
        images = torch.from_numpy(query_set(options.mixture, seed=seed, size=shape[1:]).images(range(planned.images)))
    else:
        check_images(unlabelled, shape)
        if unlabelled.dtype != torch.uint8:
            raise ValueError(f"unlabelled images are {unlabelled.dtype}: give uint8, which is what is asked about")
        if planned.images > len(unlabelled):
            planned = plan(fitted(options, len(unlabelled), queries_per_api=queries_per_api), limits, seed=seed)
        images = unlabelled[torch.from_numpy(unlabelled_order(len(unlabelled), seed=seed)[: planned.images])]
    return distil(ask(teachers, images, planned), config, options, seed=seed, device=device, on_step=on_step)


def ask(teachers: Sequence[Teacher], images: Tensor, planned: Plan) -> Answers:
    """Ask each teacher about the images planned for it. Costs `planned.queries`. images: uint8 (pool, 3, h, w)."""
    probabilities, asked = [], torch.zeros(len(images), len(teachers), dtype=torch.bool)
    for api, (teacher, indices) in enumerate(zip(teachers, planned.assigned, strict=True)):
        answers = torch.zeros(len(images), teacher.ways)
        chosen = torch.from_numpy(indices)
        if len(chosen):
            answers[chosen] = teacher.predict(images[chosen])
        asked[chosen, api] = True
        probabilities.append(answers)
    return Answers(images, probabilities, asked)


def distil(
    answers: Answers,
    config: BackboneConfig,
    options: PqdOptions,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    more: More | None = None,
    checkpoint: Checkpoint | None = None,
) -> Distilled:
    """Learn all answers jointly: AdamW on a one-cycle schedule, answers reused under flips, shifts, stretches of their image.

    Metrics: `loss`, of which `answers` is the mean squared error of the standardised logits and `relation` the relational
    term before its weight; `accuracy`, the share of answers whose largest class the student names; `episodes`, where there
    are any (`dfml.episodes`): the share of their queries that was right. The same seed, answers, device and number of threads
    give the same weights. With `more`, learning begins on a part of the answers: the number of steps is that of the whole
    pool, and the weights depend on what came before which step.

    checkpoint: where the training's state is kept; one that is of the same training is gone on from, to the same weights as
    without the interruption. `more` must then tell of each step what it told before.
    Raises ValueError where fewer than two images were answered by anyone.
    """
    device = torch.device(device)
    learned = _learned(answers, options, device)
    generator = torch.Generator().manual_seed(seed)
    _, channels, height, width = learned.images.shape
    backbone = build(config, (channels, height, width), generator=generator).to(device).train()
    head = build_head(backbone.dim, sum(answers.ways), generator).to(device)

    pool = len(learned.images) if more is None else len(answers.images)
    how = recipe(options, config, images=pool)
    steps = how.steps
    parameters = [*backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, how.learning_rate, total_steps=steps)
    told = [config.model_dump(), options.model_dump(), seed]
    training = Training(checkpoint, told, (answers.images, answers.asked, *answers.probabilities))
    tuning = torch.optim.Adam(backbone.parameters(), lr=episodes.RATE)

    def arrived(step: int) -> bool:
        """Take in what has come before this step; whether anything had."""
        nonlocal answers, learned
        grown = None if more is None else more(step, steps)
        if grown is None:
            return False
        answers, learned = grown, _learned(grown, options, device)
        widen(head, sum(grown.ways), optimiser, generator)
        return True

    for step in range(min(training.done, steps)):  # as before the interruption
        arrived(step)
    training.resume(generator, backbone=backbone, head=head, optimiser=optimiser, schedule=schedule, tuning=tuning)
    order = training.values.get("order", torch.empty(0, dtype=torch.int64))
    last = deque(training.values.get("last", ()), max(1, steps // 10))
    for step in range(training.done, steps):
        if arrived(step):
            order = torch.empty(0, dtype=torch.int64)
        batch = min(options.batch, len(learned.images))
        if len(order) < batch:  # a new pass over the pool; the few left over from the last one are skipped
            order = torch.randperm(len(learned.images), generator=generator)
        chosen, order = order[:batch].to(device), order[batch:]
        images = learned.images[chosen]
        shown = warp(images, flip=options.flip, shift=how.shift, scale=how.scale, generator=generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            features = backbone(shown)
        features = features.float()
        outputs = predicted(features, head, learned.ways)
        answer_loss, relation_loss = losses(features, outputs, learned.targets, chosen, learned.ways)
        loss = answer_loss + options.relation * relation_loss
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        metrics = {
            "loss": loss.item(),
            "answers": answer_loss.item(),
            "relation": relation_loss.item(),
            "accuracy": accuracy(outputs.detach(), learned.targets, chosen, learned.ways),
        }
        last.append(metrics)
        training.keep(step + 1, order=order, last=list(last))
        if on_step is not None:
            on_step(step + 1, steps + options.episodes, metrics)
    means = {name: sum(row[name] for row in last) / len(last) for name in last[0]}
    backbone.eval()
    rehearsal = episodes.Rehearsal(backbone, tuning, answers, device=device) if options.episodes else None
    if rehearsal is not None and rehearsal.ways > 1:
        right: list[float] = training.values.get("right", [])
        for episode in range(max(0, training.done - steps), options.episodes):
            right.append(rehearsal.episode(generator))
            training.keep(steps + episode + 1, order=order, last=list(last), right=right)
            if on_step is not None:
                on_step(steps + episode + 1, steps + options.episodes, {"episodes": right[-1]})
        set_running_statistics(backbone, rehearsal.memory.batches(64))
        means["episodes"] = sum(right) / len(right)
    return Distilled(backbone, head, means)


@dataclass(frozen=True)
class _Learned:
    """What is learned from: the images that anyone answered, uint8 (n, 3, h, w), and what they are to give."""

    images: Tensor
    targets: _Targets
    ways: Sequence[int]


def _learned(answers: Answers, options: PqdOptions, device: torch.device) -> _Learned:
    kept = answers.asked.any(1)
    images = chosen_images(answers.images, kept).to(device)
    if len(images) < 2:
        raise ValueError(f"{len(images)} images were answered, at least two are needed: raise the budget")
    return _Learned(images, _targets(answers, kept, options, device), answers.ways)


def predicted(features: Tensor, head: nn.Linear, ways: Sequence[int]) -> Tensor:
    """z_hat, the student's standardised logits (batch, ways of all APIs), centred over each API's classes."""
    return F.linear(features, centre_by_group(head.weight, ways), centre_by_group(head.bias, ways))


def losses(
    features: Tensor, outputs: Tensor, targets: "_Targets", chosen: Tensor, ways: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The two terms of the loss on a batch: features (batch, d) of the pool's images `chosen` (batch,), `outputs` z_hat.

    answers:  mean over what was asked of (z_hat - z)^2, APIs weighted by trust; of an API that gives labels alone the
              cross-entropy of softmax(z_hat) instead
    relation: mean over i != j of (cos(f_i, f_j) - cos(P_i, P_j))^2 / Var, pairs weighted by how many answers they share
    """
    seen = None if targets.seen is None else targets.seen[chosen]
    weight = seen
    if targets.trust is not None:
        weight = targets.trust.expand_as(outputs) if seen is None else seen * targets.trust
    errors = (outputs - targets.answers[chosen]).square()
    if targets.labels is not None:
        labels = targets.labels[chosen]
        errors = torch.where(labels.isnan(), errors, -labels.nan_to_num() * log_softmax_by_group(outputs, ways))
    answers = masked_mean(errors, weight)
    alike, shared = cosines(targets.profile[chosen], seen)
    return answers, relational(features, alike, None if seen is None else shared)


def accuracy(outputs: Tensor, targets: "_Targets", chosen: Tensor, ways: Sequence[int]) -> float:
    """Share of a batch's answers whose largest class is that of z_hat, in [0, 1]."""
    same = largest_by_group(outputs, ways) == largest_by_group(targets.answers[chosen], ways)
    firsts = list(accumulate([0, *ways[:-1]]))
    seen = None if targets.seen is None else targets.seen[chosen][:, firsts]
    return masked_mean(same.float(), seen).item()


MANY = 1536
"""Images from which stretching them teaches more than it blurs: measured below and above, see the method's page."""


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and how strictly a pool of images is learned; each as in `PqdOptions`."""

    steps: int
    learning_rate: float
    shift: int
    scale: float
    weight_decay: float


def recipe(options: PqdOptions, config: BackboneConfig, *, images: int) -> Recipe:
    """What the options say, and what was measured to be good where they say nothing.

    steps: 1500 up to 256 images, in proportion up to 3000 at 512, and from 1,024 on up to 9000 at 2,048.
    learning_rate: batch norm after every layer lets Conv4 learn fast; ResNets want less.
    The rest: little for a small pool, of which a student of glyphs, say, must not lose the details.
    """
    few, many = min(max(images / 256 - 1, 0), 1), min(max(images / 1024 - 1, 0), 1)
    shift, scale, weight_decay = (2, 0.0, 1e-3) if images < MANY else (4, 0.25, 1e-2)
    usual = Recipe(
        steps=round(1500 + 1500 * few + 6000 * many),
        learning_rate=8e-3 if config.backbone == "conv4" else 5e-3,
        shift=shift,
        scale=scale,
        weight_decay=weight_decay,
    )
    said = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    return replace(usual, **{name: value for name, value in said.items() if value is not None})


def _targets(answers: Answers, kept: Tensor, options: PqdOptions, device: torch.device) -> _Targets:
    logits, profiles, seen, labels = [], [], [], []
    for api, given in enumerate(answers.probabilities):
        asked, probabilities = answers.asked[kept, api], given[kept]
        full = torch.zeros_like(probabilities)
        if asked.any():
            full[asked] = log_probabilities(probabilities[asked], floor=options.floor)
            mean = probabilities[asked].mean(0)
        else:
            mean = probabilities.new_zeros(probabilities.shape[1])
        logits.append(standardised(full, asked))
        profiles.append(torch.where(asked[:, None], probabilities - mean, 0.0))
        seen.append(asked[:, None].float().expand_as(probabilities))
        alone = bool(asked.any()) and rounding_unit(probabilities[asked]) == 1.0
        labels.append(probabilities * probabilities.shape[1] if alone else torch.full_like(probabilities, torch.nan))
    mask = torch.cat(seen, 1)
    everyone = bool((mask == 1).all())
    answering = answers.asked[kept].any(0)  # an API that was asked nothing is no measure of what is usual
    weights = torch.ones(len(answering))
    weights[answering] = trust(
        *agreement([profiles[api] for api in answering.nonzero()[:, 0].tolist()], answers.asked[kept][:, answering])
    )
    by_entry = weights.repeat_interleave(torch.tensor(answers.ways))
    return _Targets(
        torch.cat(logits, 1).to(device),
        None if everyone else mask.to(device),
        (torch.cat(profiles, 1) * by_entry).to(device),
        None if bool((weights == 1).all()) else by_entry.to(device),
        None if all(bool(one.isnan().any()) for one in labels) else torch.cat(labels, 1).to(device),
    )
