"""PURER: architecture, dataset and model-scale agnostic data-free meta-learning (Hu et al., CVPR 2023).

It needs gradients of the teachers, from any source.

    min over theta, max over D of  E_tasks in D [ -L_inv(D) + I(Omega) L_outer(task; theta) ]

D are pseudo images of every class of every teacher, all learned at once (ECI, episode curriculum inversion). Each update takes
one step on D, then one of MAML on episodes drawn from D. When the meta-model stops getting better, the switch Omega lets one
step on D also raise its loss: harder episodes, exactly when it has learned the old ones.

The steps are in `dfml.curriculum`. The third part, ICFIL, works when the meta-model meets a new task: `dfml.icfil`.
`docs/methods/purer.md` names the function of every equation, and every deviation from the released code with its reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from contracts.methods import PurerOptions
from dfml import curriculum
from dfml.access import (
    Differentiable,
    check_ways,
    common_shape,
    known_weights,
    pass_cost,
    probe_cost,
    white_boxes,
)
from dfml.checkpoint import Checkpoint
from dfml.fusion import average
from dfml.nets import Backbone
from dfml.nets.learner import Learner, build_learner
from dfml.numerics.inner_loop import set_running_statistics
from dfml.numerics.meta_learners import functional_learner
from dfml.plans import rounds_within
from dfml.teachers import Teacher
from dfml.training import Counts, Training

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each update with (updates done, updates in all, metrics); it may raise to stop."""


@dataclass(frozen=True)
class Learned:
    """`backbone`: the meta-model, in evaluation mode; its running statistics are those of the pseudo images.

    `head`: the linear layer that the inner steps start from. `pseudo`: for each teacher its images, float in [0, 1]
    (classes, images a class, 3, h, w). `metrics`: of the last update.
    """

    backbone: Backbone
    head: nn.Linear
    pseudo: list[Tensor]
    metrics: dict[str, float]


def train(
    teachers: Sequence[Teacher],
    config: BackboneConfig,
    options: PurerOptions,
    *,
    queries: int | None = None,
    queries_per_api: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> Learned:
    """The whole method. With weights it asks nothing: `forward_passes` and `backward_passes` of the teachers say what it cost.

    Costs a forward and a backward pass of every pseudo image of the teachers drawn, each update. With any other source of
    gradients than weights these are queries: the pseudo images are moved for as many updates as the budget allows
    (`inversions_within`) and stay as they are in the others; `queries` images are asked in all, at most, and no API is asked
    more than `queries_per_api`. The teachers must be on `device`.

    Metrics: `inversion` (mean L_inv), `accuracy` and `loss` (of the episodes), `harder` (1 where the step on D was
    adversarial).

    checkpoint: where the training's state is kept after some updates; one that is of the same training is gone on from, to the
    same weights as without the interruption, and nothing that came before it is asked again.
    Raises ValueError where the teachers do not fit together, have fewer classes than an episode, or the budget
    allows no update, and `WeightsNeeded`; then nothing was asked.
    """
    shape = check(teachers, options)
    inversions = inversions_within(options, teachers, queries=queries, queries_per_api=queries_per_api)
    generator = torch.Generator().manual_seed(seed)
    met = Differentiable(teachers, options.gradients, generator=generator)
    learner = start(teachers, config, options, shape, generator).to(device)
    functions = functional_learner(learner)
    images = [
        image.to(device).requires_grad_()
        for image in curriculum.first_images(teachers, options, shape, seed, generator)
    ]
    on_images = torch.optim.Adam(images, lr=options.image_rate)  # one for the whole pseudo data set
    outer = torch.optim.Adam(functions.parameters.values(), lr=options.outer_rate)
    switch = curriculum.Switch(first=options.adversarial_from, patience=options.patience)
    told = [config.model_dump(), options.model_dump(), seed, queries, queries_per_api, [one.ways for one in teachers]]
    training = Training(checkpoint, told, known_weights(teachers, options.gradients))
    pseudo, counts = nn.ParameterList(images), Counts(teachers)
    training.resume(
        generator,
        learner=learner,
        pseudo=pseudo,
        on_images=on_images,
        outer=outer,
        switch=switch,
        met=met,
        counts=counts,
    )
    harder: bool = training.values.get("harder", False)
    metrics: dict[str, float] = training.values.get("metrics", {"inversion": 0.0})
    for update in range(training.done, options.updates):
        inversion = metrics["inversion"]
        if update < inversions:
            drawn = torch.randperm(len(teachers), generator=generator)[: options.teachers or len(teachers)].tolist()
            inversion = curriculum.invert(met, images, drawn, on_images, options, generator=generator)
            if harder and options.adversarial:
                curriculum.ask_for_harder(functions, images, teachers, options, generator=generator)
            curriculum.take_step(on_images, images)
        loss, accuracy = curriculum.learn(
            functions, outer, curriculum.by_class(images, teachers), options, generator=generator
        )
        metrics = {"inversion": inversion, "loss": loss, "accuracy": accuracy, "harder": float(harder)}
        harder = switch.asks(update, accuracy)
        training.keep(update + 1, harder=harder, metrics=metrics)
        if on_step is not None:
            on_step(update + 1, options.updates, metrics)
    set_running_statistics(learner, _mixed([image.detach() for image in images]))
    made = [image.detach().view(teacher.ways, -1, *shape) for image, teacher in zip(images, teachers, strict=True)]
    return Learned(learner.backbone.eval(), learner.head, made, metrics)


def start(
    teachers: Sequence[Teacher],
    config: BackboneConfig,
    options: PurerOptions,
    shape: tuple[int, int, int],
    generator: torch.Generator,
) -> Learner:
    """The meta-model as it begins: drawn from the generator, or with the average of the teachers' weights and a drawn head."""
    learner = build_learner(config, shape, ways=options.ways, generator=generator)
    if options.start == "average":
        learner.backbone.load_state_dict(average(white_boxes(teachers), config).state_dict())
    return learner


def inversion_cost(options: PurerOptions, *, ways: int) -> int:
    """Queries of a step on a teacher's pseudo images: `ways images_per_class (1 + c)`, c a gradient's; 0 with weights."""
    return ways * options.images_per_class * pass_cost(options.gradients)


def inversions_within(
    options: PurerOptions, teachers: Sequence[Teacher], *, queries: int | None, queries_per_api: int | None
) -> int:
    """Updates for which the budget lets the pseudo images be moved, were the dearest teachers drawn. ValueError for none."""
    costs = sorted((inversion_cost(options, ways=teacher.ways) for teacher in teachers), reverse=True)
    return rounds_within(
        queries,
        wanted=options.updates,
        round_cost=sum(costs[: options.teachers]),
        api_cost=costs[0],
        before=probe_cost(options.gradients),
        apis=len(teachers),
        per_api=queries_per_api,
    )


def check(teachers: Sequence[Teacher], options: PurerOptions) -> tuple[int, int, int]:
    """The images' shape. Raises ValueError that says what does not fit."""
    if options.gradients.source == "weights" or options.start == "average":
        white_boxes(teachers)
    check_ways(teachers, options.ways)
    return common_shape(teachers)


def _mixed(images: Sequence[Tensor], size: int = 64) -> Iterator[Tensor]:
    """All pseudo images in batches in which the classes are mixed evenly."""
    every = torch.cat(list(images))
    count = max(1, len(every) // size)
    yield from (every[first::count] for first in range(count))
