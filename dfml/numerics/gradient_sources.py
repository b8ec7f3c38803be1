"""Where the gradient of a teacher's answer to the pixels comes from: exact, estimated by queries, or that of a local copy.

`Asked` makes a black box a `DifferentiableTeacher`, so that whatever inverts white boxes inverts APIs too. Forward, an image
is a query; backward, with `c` the cotangent of its log-probabilities `a(x)`, the source says what `d <c, a(x)> / dx` is:

                                                                                         queries
    weights       autograd through the teacher itself, exact (`teachers.ModuleTeacher`)  0, and none forward
    ZerothOrder   differences of <c, a> along random directions                          q, or 2 q antithetic
    Surrogate     autograd through a network that has learned all answers so far         0
    Guided        differences along the surrogate's gradient and q directions beside it  q + 1

A surrogate costs nothing but is biased: it is wrong wherever the local copy is. Guided differences see that it is wrong: the
slope along the copy's direction is asked of the API (Cheng et al. 2019, prior-guided random gradient-free).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml.nets.learner import build_learner
from dfml.numerics.distillation import divergence
from dfml.numerics.zeroth_order import Estimator, Values
from dfml.teachers import BatchStatistics, Teacher

FLOOR = 1e-6
"""Of probabilities before their logarithm, where answers are not rounded."""


class Source(Protocol):
    """Says what the gradient of an API's answer is."""

    @property
    def cost(self) -> int:
        """Queries of a gradient, an image, beside the one of the forward pass."""

    def learn(self, images: Tensor, answers: Tensor) -> None:
        """Take note of an answer paid for: float images in [0, 1], probabilities (n, ways)."""

    def gradient(self, loss: Values, images: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        """d loss / d images, (n, *shape).

        loss: `<c, a(x)>`, a query a point; value: (n,), it at the images; cotangent: c (n, ways).
        """

    def state_dict(self) -> dict[Any, Any]:
        """What it has learned so far."""

    def load_state_dict(self, state: dict[Any, Any], /) -> None:
        """Go on from what it had learned."""


@dataclass
class ZerothOrder:
    """Differences along random directions, as `estimator` draws them, `step` long."""

    estimator: Estimator
    step: float
    generator: torch.Generator

    @property
    def cost(self) -> int:
        return self.estimator.cost if self.estimator.antithetic else self.estimator.directions

    def learn(self, images: Tensor, answers: Tensor) -> None:
        """Nothing: it forgets what it paid for."""

    def gradient(self, loss: Values, images: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        estimate = self.estimator.estimate(loss, images, step=self.step, generator=self.generator, centre=value)
        return estimate.gradient

    def state_dict(self) -> dict[Any, Any]:
        return {}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Nothing."""


class Surrogate:
    """The gradient of a network of our own, taught by every answer paid for: `steps` batches of 64 each time there are more."""

    cost = 0

    def __init__(
        self,
        ways: int,
        shape: tuple[int, int, int],
        *,
        generator: torch.Generator,
        width: int = 32,
        steps: int = 10,
        rate: float = 2e-3,
        capacity: int = 20_000,
    ) -> None:
        self._network = build_learner(BackboneConfig(width=width), shape, ways=ways, generator=generator)
        self._optimiser = torch.optim.AdamW(self._network.parameters(), lr=rate, weight_decay=1e-3)
        self._steps, self._capacity, self._generator = steps, capacity, generator
        self._images, self._answers = torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0, ways)

    def learn(self, images: Tensor, answers: Tensor) -> None:
        stored = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        self._images = torch.cat([self._images, stored])[-self._capacity :]
        self._answers = torch.cat([self._answers, answers.detach().cpu()])[-self._capacity :]
        self._network.train()
        for _ in range(self._steps):
            chosen = torch.randint(len(self._images), (min(64, len(self._images)),), generator=self._generator)
            if len(chosen) < 2:
                break  # batch norm needs two images
            self._optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad():  # answers come in the midst of a forward or backward pass
                loss = divergence(self._answers[chosen], self._network(self._images[chosen]))
            torch.autograd.backward(loss)
            self._optimiser.step()
        self._network.eval()

    def gradient(self, loss: Values, images: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            points = images.detach().cpu().requires_grad_()
            told = (self._network(points).log_softmax(-1) * cotangent.cpu()).sum()
            (slope,) = torch.autograd.grad(told, [points])
        return slope.to(images)

    def state_dict(self) -> dict[Any, Any]:
        parts = {"network": self._network.state_dict(), "optimiser": self._optimiser.state_dict()}
        return {**parts, "images": self._images, "answers": self._answers}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._images, self._answers = state["images"], state["answers"]


class Guided:
    """The projection of the gradient on the surrogate's direction and `estimator`'s, which are made orthogonal to it.

    With `alpha` the cosine of the surrogate's gradient with the true one and D dimensions, the cosine of the estimate on a
    linear loss is `sqrt(alpha^2 + (1 - alpha^2) q / (D - 1))` in the root mean square (`cosine`).
    """

    def __init__(self, surrogate: Surrogate, estimator: Estimator, *, step: float, generator: torch.Generator) -> None:
        self._surrogate, self._estimator = surrogate, estimator
        self._step, self._generator = step, generator

    @property
    def cost(self) -> int:
        return self._estimator.directions + 1

    def learn(self, images: Tensor, answers: Tensor) -> None:
        self._surrogate.learn(images, answers)

    def gradient(self, loss: Values, images: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        prior = self._surrogate.gradient(loss, images, value, cotangent)
        shape = tuple(images.shape[1:])
        drawn = self._estimator.directions_at(len(images), shape, self._generator).to(images)
        lines = torch.cat([prior[None], drawn]).flatten(2).permute(1, 2, 0)  # (n, D, 1 + q), the prior first
        units = torch.linalg.qr(lines).Q.permute(2, 0, 1).reshape(-1, *images.shape)
        slopes = (loss(images + self._step * units) - value) / self._step
        return torch.einsum("kn,kn...->n...", slopes, units)

    def state_dict(self) -> dict[Any, Any]:
        return self._surrogate.state_dict()

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self._surrogate.load_state_dict(state)


def guided_cosine(alpha: float, directions: int, dimension: int) -> float:
    """What the cosine of a guided estimate with a linear loss's gradient comes to, its prior being `alpha` right."""
    return math.sqrt(alpha**2 + (1 - alpha**2) * directions / (dimension - 1))


class Asked:
    """An API as a `DifferentiableTeacher`: its answers are queries, its gradients what `source` says. On the CPU.

    `logits` are the logarithms of its probabilities, not below `floor`. Images are cut to [0, 1] before they are asked about.
    A forward pass of n images costs n queries, a backward pass through it `n source.cost`.
    """

    device = torch.device("cpu")

    def __init__(self, teacher: Teacher, source: Source, *, floor: float = FLOOR) -> None:
        self.teacher = teacher
        self.source = source
        self._floor = floor
        self.ways, self.input_shape = teacher.ways, teacher.input_shape

    @property
    def queries(self) -> int:
        return self.teacher.queries

    def predict(self, images: Tensor) -> Tensor:
        """The API's own answers: a query an image."""
        return self.teacher.predict(images)

    def logits(self, images: Tensor) -> Tensor:
        """float (n, 3, h, w) -> log-probabilities (n, ways), differentiable to the pixels by what the source says."""
        logits: Tensor = _Answer.apply(images, self)  # type: ignore[no-untyped-call]
        return logits

    def inspect(self, images: Tensor) -> tuple[Tensor, list[BatchStatistics]]:
        """Like `logits`; what a batch norm remembers no API tells."""
        return self.logits(images), []

    def ask(self, images: Tensor) -> Tensor:
        """Log-probabilities without a graph. Costs a query an image, and teaches the source."""
        asked = images.detach().clamp(0, 1)
        answers = self.teacher.predict(asked)
        self.source.learn(asked, answers)
        return answers.clamp_min(self._floor).log()

    def pull_back(self, images: Tensor, logits: Tensor, cotangent: Tensor) -> Tensor:
        """The source's gradient of `<cotangent, log-probabilities>`."""

        def loss(points: Tensor) -> Tensor:  # (k, n, *shape) -> (k, n)
            told = self.ask(points.flatten(0, 1)).view(*points.shape[:2], -1)
            return (told * cotangent).sum(-1)

        with torch.no_grad():
            return self.source.gradient(loss, images.detach(), (logits * cotangent).sum(-1), cotangent)


class _Answer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, asked: Asked) -> Tensor:
        logits = asked.ask(images)
        ctx.asked = asked
        ctx.save_for_backward(images, logits)
        return logits

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        images, logits = ctx.saved_tensors
        return ctx.asked.pull_back(images, logits, cotangent), None
