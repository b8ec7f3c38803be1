"""Images recovered from an API's answers alone: BiDf-MKD's zeroth-order inversion through a label-conditional generator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.methods import BidfMkdOptions
from dfml.access import floor_of, step_of
from dfml.nets.generator import build_generator
from dfml.numerics.gradient_sources import Asked, Source
from dfml.numerics.inversion import likeness
from dfml.numerics.zeroth_order import Estimator, surrogate
from dfml.procedural import query_set
from dfml.teachers import CHUNK, Teacher, rounds_images
from dfml.visits import Plan, estimator_of


@dataclass(frozen=True)
class RecoveredSet:
    """images: float (n, 3, h, w) in [0, 1]. labels: int64 (n,), what they were made for. answers: (n, ways), the API's."""

    images: Tensor
    labels: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Recovery:
    """What recovering a set of images from one API takes. `unit`: what its answers are rounded to; None: not rounded.

    `source`: where gradients come from and what it has learned of this API so far; None: `options`' zeroth-order estimator.
    """

    teacher: Teacher
    options: BidfMkdOptions
    plan: Plan
    unit: float | None
    generator: torch.Generator
    device: torch.device
    source: Source | None = None

    @property
    def estimator(self) -> Estimator:
        return estimator_of(self.options)

    @property
    def floor(self) -> float:
        """Smallest probability told apart from zero."""
        return floor_of(self.unit, self.teacher.ways)

    @property
    def step(self) -> float:
        if self.options.step is not None:
            return self.options.step
        rounds = (self.options.eight_bit or rounds_images(self.teacher)) and self.options.space == "pixels"
        return step_of(self.estimator, self.unit, self.teacher.input_shape, eight_bit=rounds)

    def ask(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w), cut to [0, 1] -> the API's probabilities (n, ways). Costs n queries."""
        images = images.clamp(0, 1)
        if self.options.eight_bit:
            images = (images * 255).round() / 255
        return self.teacher.predict(images.cpu()).to(self.device)


class _Shown:
    """The API of a recovery as it is asked there: images rounded to 8 bits, if so."""

    def __init__(self, recovery: Recovery) -> None:
        self.ways, self.input_shape = recovery.teacher.ways, recovery.teacher.input_shape
        self._recovery = recovery

    @property
    def queries(self) -> int:
        return self._recovery.teacher.queries

    def predict(self, images: Tensor) -> Tensor:
        return self._recovery.ask(images).cpu()


OnIteration = Callable[[int, Tensor], None]
"""Called with (iterations done, float images (n, 3, h, w) as they then are), before the first too."""


def recover(
    recovery: Recovery,
    *,
    student: nn.Module | None = None,
    boundary: float = 0.0,
    on_iteration: OnIteration | None = None,
) -> RecoveredSet:
    """Images that the API takes for each of its classes: zeroth-order inversion through a fresh generator.

    Minimises `CE(A(x), y) + boundary l_bd(A(x), student(x)) + diversity likeness(x, y)` over `x = G(z, y)` in G and z, by
    Adam on the estimated gradient with respect to x, carried on to G and z by the chain rule. In latent space the gradient
    with respect to z is estimated, through G as it was drawn, and z alone is learned. Where `canvas` is above 0,
    `x = (1 - canvas) G(z, y) + canvas c`, c a procedural image of its own for each.

    With a source of gradients the loss is differentiated through the API's answers as the source says (`gradient_sources`).

    Costs `ways images (iterations c + 1)` queries; the last one an image is the answer that distillation needs.
    """
    options, teacher, device = recovery.options, recovery.teacher, recovery.device
    labels = torch.arange(teacher.ways).repeat_interleave(recovery.plan.images).to(device)
    net = build_generator(
        latent=options.latent,
        classes=teacher.ways,
        shape=teacher.input_shape,
        width=options.generator_width,
        generator=recovery.generator,
    ).to(device)
    z = torch.randn(len(labels), options.latent, generator=recovery.generator).to(device).requires_grad_()
    learned = [z] if options.space == "latent" else [*net.parameters(), z]
    optimiser = torch.optim.Adam(learned, lr=options.generator_rate, betas=(0.5, 0.999))
    canvas = _canvas(recovery, len(labels))

    def made(noise: Tensor) -> Tensor:
        drawn: Tensor = net(noise, labels)
        return drawn if canvas is None else (1 - options.canvas) * drawn + options.canvas * canvas

    def of_answers(answers: Tensor, images: Tensor) -> Tensor:  # (k, n, ways), (k, n, 3, h, w) -> (k, n)
        wanted = answers.gather(2, labels.expand(len(images), -1)[..., None])[..., 0]
        loss: Tensor = -wanted.clamp_min(recovery.floor).log()
        if student is not None and boundary:
            loss = loss + boundary * boundary_loss(answers, _probabilities(student, images, teacher.ways))
        return loss

    def of_images(images: Tensor) -> Tensor:  # (k, n, 3, h, w) -> (k, n)
        with torch.no_grad():
            answers = recovery.ask(images.flatten(0, 1)).view(len(images), len(labels), teacher.ways)
            return of_answers(answers, images)

    def of_noise(variants: Tensor) -> Tensor:  # (k, n, latent) -> (k, n)
        return of_images(torch.stack([made(variant) for variant in variants]))

    met = None if recovery.source is None else Asked(_Shown(recovery), recovery.source, floor=recovery.floor)
    for iteration in range(recovery.plan.iterations):
        images = made(z)
        if on_iteration is not None:
            on_iteration(iteration, images.detach())
        if met is not None:
            told = met.logits(images.cpu()).to(device).exp()
            inversion = of_answers(told[None], images[None]).sum()
        else:
            points = z if options.space == "latent" else images
            loss = of_noise if options.space == "latent" else of_images
            estimate = recovery.estimator.estimate(loss, points, step=recovery.step, generator=recovery.generator)
            inversion = surrogate(points, estimate.gradient)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(inversion / len(labels) + options.diversity * likeness(images, labels))
        optimiser.step()
    with torch.no_grad():
        images = made(z)
        if options.eight_bit:
            images = (images * 255).round() / 255
    if on_iteration is not None:
        on_iteration(recovery.plan.iterations, images)
    return RecoveredSet(images, labels, recovery.ask(images))


def _canvas(recovery: Recovery, count: int) -> Tensor | None:
    """What images are painted on: pqd's `objects`, float (count, 3, h, w) in [0, 1]; None where `canvas` is 0."""
    if not recovery.options.canvas:
        return None
    seed = int(torch.randint(2**31 - 1, (), generator=recovery.generator))
    objects = query_set({"objects": 1.0}, seed=seed, size=recovery.teacher.input_shape[1:]).images(range(count))
    return (torch.from_numpy(objects).float() / 255).to(recovery.device)


def boundary_loss(answers: Tensor, student: Tensor) -> Tensor:
    """`l_bd = - sum_c |t_c - s_c|` where API and student name the same class, else 0; probabilities (…, ways) -> (…).

    An image that both see alike teaches nothing. Pushed apart while they still agree, it lies at the student's boundary.
    """
    agree = answers.argmax(-1) == student.argmax(-1)
    return -(answers - student).abs().sum(-1) * agree


def _probabilities(student: nn.Module, images: Tensor, ways: int) -> Tensor:
    """Images (k, n, 3, h, w) -> probabilities (k, n, ways), differentiable to the images."""
    parts = torch.split(images.flatten(0, 1).clamp(0, 1), CHUNK)
    logits = torch.cat([student(part)[:, :ways] for part in parts])
    return logits.softmax(-1).view(*images.shape[:2], ways)
