"""What every method is compared with. Each is small, and says what it needs that a data-free method has not.

    random_initialisation   nothing: the start of every method
    best_single             weights of one teacher, and which one is best
    weight_average          weights of all teachers, of one architecture
    ota                     the same, their channels matched first
    dro                     the same, predicted from learned embeddings of the tasks
    single_teacher          the answers of one teacher about images at hand
    OutputsAsFeatures       the APIs themselves, whenever the meta-model is used: one query of each an image, for ever
    real_data               the teachers' training images: the ceiling

The last two are bounds, not rivals: what they give is no self-contained meta-model made without data.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from dfml.dro import fuse
from dfml.fusion import aligned_average, average, transplant
from dfml.methods import distill
from dfml.nets import Backbone, build
from dfml.nets.learner import Learner
from dfml.supervised import OnEpoch, train_classifier
from dfml.teachers import ModuleTeacher, Teacher, WhiteBoxTeacher


def random_initialisation(config: BackboneConfig, input_shape: tuple[int, int, int], *, seed: int) -> Backbone:
    """The network untrained."""
    return build(config, input_shape, generator=torch.Generator().manual_seed(seed))


def best_single(
    teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig, *, held_out_accuracies: Sequence[float]
) -> Backbone:
    """The features of the teacher with the best accuracy on its own held-out images, as its host states it."""
    _, best = max(zip(held_out_accuracies, range(len(teachers)), strict=True))
    return transplant(teachers[best], config)


def weight_average(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig) -> Backbone:
    """The mean of all teachers' weights. Raises ValueError where architectures differ."""
    return average(teachers, config)


def ota(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig) -> Backbone:
    """Their mean after optimal transport of channels (Singh and Jaggi 2020). Raises ValueError where architectures differ."""
    return aligned_average(teachers, config)


def dro(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig, *, seed: int) -> Backbone:
    """Distributionally robust fusion (Wang et al. 2022). Raises ValueError where architectures differ."""
    return fuse(teachers, config, seed=seed)


def single_teacher(
    teacher: Teacher,
    config: BackboneConfig,
    *,
    images: Tensor,
    seed: int,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 5e-3,
    device: torch.device | str = "cpu",
) -> Learner:
    """A fresh network that learns one teacher's answers about `images`, uint8 (n, 3, h, w): KL, AdamW, one cycle.

    Costs n queries. Its accuracy on the teacher's real held-out images measures how good recovered images are; its backbone
    is the baseline of distilling one API alone.
    """
    learner, _ = distill.one(
        images, teacher.predict(images), config, seed=seed, steps=steps, batch=batch, rate=rate, device=device
    )
    return learner


class OutputsAsFeatures(nn.Module):
    """Images -> the probabilities of all teachers side by side (n, sum of ways); evaluated like a backbone.

    No training; but each image costs a query of every teacher, at meta-test time too.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        shapes = {teacher.input_shape for teacher in teachers}
        if len(shapes) != 1:
            raise ValueError(f"teachers take images of {sorted(shapes)}: give teachers of one size")
        self.teachers = list(teachers)
        self.input_shape = shapes.pop()
        self.dim = sum(teacher.ways for teacher in teachers)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([teacher.predict(images) for teacher in self.teachers], 1)


def real_data(
    images: Tensor,
    config: BackboneConfig,
    *,
    seed: int,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> Backbone:
    """Supervised on the real images of all meta-training classes: uint8 (classes, per_class, 3, h, w). Conv4 alone.

    Default epochs: 14.
    """
    classifier, _ = train_classifier(
        images, config=config, seed=seed, epochs=epochs or 14, held_out=0.05, device=device, on_epoch=on_epoch
    )
    teacher = ModuleTeacher(classifier, ways=classifier.ways, input_shape=classifier.input_shape, device=device)
    return transplant(teacher, config)
