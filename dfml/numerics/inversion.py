"""Losses whose descent turns noise into images that a classifier knows: DeepInversion (Yin et al. 2020) and PURER's L_inv.

    L_inv(x) = CE(f(x), y) + tv TV(u) + bn sum over batch norms (|mu - mu_run| + |var - var_run|) + l2 |u|

All norms are Euclidean and not squared, as in PURER's code. `u` are the pixels in the unit that the papers' networks see, here
(x - 0.5) / 0.25, so that their weights keep their meaning while our images stay in [0, 1].
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dfml.nets.generator import Generator
from dfml.teachers import BatchStatistics, DifferentiableTeacher


@dataclass(frozen=True)
class Terms:
    """Weights of the terms beside the cross-entropy; the defaults are those of PURER's code."""

    total_variation: float = 1e-4
    batch_norm: float = 1e-2
    length: float = 1e-5


@dataclass(frozen=True)
class InversionLoss:
    """`total` is a differentiable scalar; `logits` (n, ways) are the teacher's, for terms that a method adds."""

    total: Tensor
    logits: Tensor


def inversion_loss(teacher: DifferentiableTeacher, images: Tensor, labels: Tensor, terms: Terms) -> InversionLoss:
    """L_inv of float images (n, 3, h, w) that should be of classes `labels`, int64 (n,). One forward pass an image."""
    logits, statistics = teacher.inspect(images) if terms.batch_norm else (teacher.logits(images), [])
    seen = as_seen(images)
    total = F.cross_entropy(logits, labels)
    if terms.batch_norm and statistics:
        total = total + terms.batch_norm * batch_norm_gap(statistics)
    if terms.total_variation:
        total = total + terms.total_variation * total_variation(seen)
    if terms.length:
        total = total + terms.length * seen.norm()
    return InversionLoss(total, logits)


def as_seen(images: Tensor) -> Tensor:
    """Images in [0, 1] in units of a network's input: (x - 0.5) / 0.25."""
    seen: Tensor = (images - 0.5) / 0.25
    return seen


def total_variation(images: Tensor) -> Tensor:
    """Sum of four Euclidean norms: differences to the neighbour across, below, and on both diagonals; whole batch at once."""
    across = images[..., :, :-1] - images[..., :, 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return torch.stack([difference.norm() for difference in (across, down, falling, rising)]).sum()


def batch_norm_gap(statistics: Sequence[BatchStatistics]) -> Tensor:
    """Sum over batch norms of |mean - running mean| + |variance - running variance|, Euclidean norms over channels."""
    gaps = [(met.mean - met.running_mean).norm() + (met.variance - met.running_variance).norm() for met in statistics]
    return torch.stack(gaps).sum()


def disagreement(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over images of KL(teacher || student) where both name the same class, else 0: what an attacker raises.

    Images on which the student agrees teach it nothing; FREE and BiDf-MKD move them to where its probabilities differ. Both
    are logits (n, ways); the gradient goes through the teacher's alone, as in FREE.
    """
    student = student.detach().log_softmax(-1)
    known = teacher.log_softmax(-1)
    divergence = (known.exp() * (known - student)).sum(-1)
    return (divergence * (known.argmax(-1) == student.argmax(-1))).mean()


def likeness(images: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine between two images of one class, coarse (a block of 4 x 4 is a number) and less the mean of all images.

    A generator that is told the class draws one image of it over and over, unless this is kept low. images: (n, 3, h, w).
    """
    coarse = F.avg_pool2d(images, 4, ceil_mode=True).flatten(1)
    unit = F.normalize(coarse - coarse.mean(0), dim=1)
    pairs = torch.eq(labels[:, None], labels).fill_diagonal_(False)
    return (unit @ unit.T)[pairs].sum() / pairs.sum().clamp_min(1)


def roll(images: Tensor, *, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """All images rolled by one draw of up to `shift` pixels down and across, and all mirrored or not: differentiable."""
    down, across = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
    if flip and torch.rand((), generator=generator).item() < 0.5:
        images = images.flip(3)
    return torch.roll(images, (down, across), (2, 3))


@dataclass(frozen=True)
class Recovered:
    """`images`: float (n, 3, h, w) in [0, 1], detached; `labels`: int64 (n,); `loss`: what they were chosen by."""

    images: Tensor
    labels: Tensor
    loss: float


def invert_images(
    teacher: DifferentiableTeacher,
    labels: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    rate: float = 0.05,
    terms: Terms | None = None,
    shift: int = 2,
    flip: bool = True,
) -> Recovered:
    """DeepInversion: Adam on the pixels, kept in [0, 1] by projection; the images with the lowest loss are kept.

    labels: int64 (n,), the classes wanted. Costs `steps` forward and backward passes an image.
    """
    images = noise_images(len(labels), teacher.input_shape, generator).to(teacher.device).requires_grad_()
    labels = labels.to(teacher.device)
    optimiser = torch.optim.Adam([images], lr=rate)
    best = Recovered(images.detach().clone(), labels, float("inf"))
    for _ in range(steps):
        moved = roll(images, shift=shift, flip=flip, generator=generator)
        loss = inversion_loss(teacher, moved, labels, terms or Terms()).total
        if loss.item() < best.loss:
            best = Recovered(images.detach().clone(), labels, loss.item())
        (images.grad,) = torch.autograd.grad(loss, [images])
        optimiser.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return best


def noise_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Grey plus noise of standard deviation 0.25, what the papers start from, cut to [0, 1]: float (count, *shape)."""
    return (0.5 + 0.25 * torch.randn(count, *shape, generator=generator)).clamp_(0, 1)


Gradients = list[Tensor]
"""One a parameter of a module, in the order of `parameters()`."""
More = Callable[[Tensor, Tensor], Tensor]
"""(images that the teacher saw, its logits) -> a scalar that a method adds to the loss."""


OnPass = Callable[[int, Recovered], None]
"""Called with (forward passes done, what would be recovered were it the last)."""


@dataclass(frozen=True)
class Inverted:
    """What a copy of a generator found, and the slopes of its parameters that a meta-generator learns from.

    last: at the last forward pass; total: summed over all of them.
    """

    recovered: Recovered
    last: Gradients
    total: Gradients


def invert_generator(
    net: Generator,
    teacher: DifferentiableTeacher,
    labels: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    rate: float = 1e-3,
    latent_rate: float = 1e-3,
    terms: Terms | None = None,
    shift: int = 2,
    flip: bool = True,
    more: More | None = None,
    canvas: Tensor | None = None,
    share: float = 0.0,
    on_pass: OnPass | None = None,
) -> Inverted:
    """Adapt a copy of `net`, and fresh noise, to one teacher: Adam with betas 0.5 and 0.999, as in FREE; `net` stays as it is.

    Of the `steps` forward passes the images with the lowest loss are kept; the parameters move between them, `steps - 1` times.
    Costs `steps` forward and backward passes an image. labels: int64 (n,).

    canvas: float images (n, 3, h, w) in [0, 1] that make up `share` of what the teacher sees and of what is recovered.
    """
    copied = copy.deepcopy(net).requires_grad_()
    z = torch.randn(len(labels), net.latent, generator=generator).to(teacher.device).requires_grad_()
    labels = labels.to(teacher.device)
    parameters = list(copied.parameters())
    optimiser = torch.optim.Adam(
        [{"params": parameters, "lr": rate}, {"params": [z], "lr": latent_rate}], betas=(0.5, 0.999)
    )
    best = Recovered(torch.empty(0), labels, float("inf"))
    total = [torch.zeros_like(parameter) for parameter in parameters]
    last = total
    for step in range(steps):
        images = copied(z, None if net.classes is None else labels)
        if canvas is not None:
            images = (1 - share) * images + share * canvas
        moved = roll(images, shift=shift, flip=flip, generator=generator)
        found = inversion_loss(teacher, moved, labels, terms or Terms())
        loss = found.total if more is None else found.total + more(moved, found.logits)
        if loss.item() < best.loss or not step:
            best = Recovered(images.detach(), labels, loss.item())
        if on_pass is not None:
            on_pass(step + 1, best)
        *last, z.grad = torch.autograd.grad(loss, [*parameters, z])
        for parameter, slope, summed in zip(parameters, last, total, strict=True):
            parameter.grad = slope
            summed += slope
        if step + 1 < steps:
            optimiser.step()
    return Inverted(best, last, total)
