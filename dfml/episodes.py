"""Episodes of tasks that nobody labelled: classes are what the APIs likeliest named the images they were asked about.

After a network has learned the answers themselves, it learns to tell such classes apart from a few images, as it will be used:
a ridge regression on the support, in closed form, is judged on the query, and its loss descended in the features.
"""

import torch

from dfml.memory import Answers
from dfml.nets import Backbone
from dfml.nets.learner import Learner
from dfml.numerics.meta_learners import functional_learner, ridge_loss
from dfml.replay import TaskMemory

WAYS, SHOTS, QUERIES = 5, 5, 10
RATE = 3e-4
"""Adam's."""


def named(answers: Answers, *, device: torch.device | str = "cpu") -> TaskMemory:
    """Every image under the class that each API asked about it named: a class is one of one API."""
    memory = TaskMemory(len(answers.images), device=device)
    for api, probabilities in enumerate(answers.probabilities):
        asked = answers.asked[:, api]
        if asked.any():
            memory.add(api, answers.images[asked].float() / 255, probabilities[asked].argmax(-1))
    return memory


class Rehearsal:
    """Episodes of the answers for a backbone, whose parameters `optimiser` moves; by the batch's statistics, as training does.

    ways: classes of an episode; fewer than two where too few images were named.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimiser: torch.optim.Optimizer,
        answers: Answers,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.memory = named(answers, device=device)
        self.ways = min(WAYS, self.memory.able(SHOTS + QUERIES))
        self._functions = functional_learner(Learner(backbone, WAYS).eval())
        self._optimiser = optimiser

    def episode(self, generator: torch.Generator) -> float:
        """Learn one task; the share of its query that was right before. There must be two `ways` at least."""
        task = self.memory.task(ways=self.ways, shots=SHOTS, queries=QUERIES, generator=generator)
        loss, right = ridge_loss(self._functions.features, self._functions.parameters, task)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimiser.step()
        return right
