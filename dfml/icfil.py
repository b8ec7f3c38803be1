"""ICFIL: PURER's calibration when the meta-model meets a new task (Hu et al. 2023, section on meta-testing).

    inner loop    fine-tune all weights on the few labelled images
    inversion     recover pseudo images of the new classes from the network that came out, with L_inv
    calibration   pull the features of the real images towards those of the pseudo images of their class, with L_cal

The released code has none of it. The paper gives the loss and the order; every number and choice here is ours, and is listed
with its reason in `docs/methods/purer.md`. Batch norm is inductive throughout.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.methods import IcfilOptions
from dfml.nets import Backbone
from dfml.nets.learner import Learner
from dfml.numerics.calibration import calibration_loss, pairs
from dfml.numerics.inner_loop import Parameters, fine_tune, functional
from dfml.numerics.inversion import Recovered, invert_images
from dfml.teachers import CHUNK, ModuleTeacher, check_images

BACKBONE = "backbone."


@dataclass(frozen=True)
class Calibrated:
    """A network fine-tuned to one task and calibrated. `pseudo`: what it was calibrated by; None where it was not."""

    learner: Learner
    pseudo: Recovered | None

    def predict(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (n, 3, h, w) -> probabilities float32 (n, ways), on the CPU. ValueError on bad images."""
        check_images(images, self.learner.backbone.input_shape)
        device = next(self.learner.parameters()).device
        with torch.inference_mode():
            parts = [self.learner(part.to(device)).softmax(-1) for part in torch.split(images, CHUNK)]
        return torch.cat(parts).cpu().clone()


def adapt(
    backbone: Backbone,
    images: Tensor,
    labels: Tensor,
    *,
    ways: int,
    options: IcfilOptions,
    seed: int,
    head: nn.Linear | None = None,
) -> Calibrated:
    """Adapt a meta-model to a few labelled images; `backbone` stays as it is.

    images: uint8, or float in [0, 1], (n, 3, h, w); labels: int64 (n,) in [0, ways), each class at least once.
    head: what the inner loop starts from, at least `ways` outputs; None for zeros.
    Raises ValueError that says what does not fit.
    """
    check_images(images, backbone.input_shape)
    if labels.shape != (len(images),) or sorted(set(labels.tolist())) != list(range(ways)):
        raise ValueError(f"give one label an image, and each of the classes 0 to {ways - 1} at least one image")
    device = next(backbone.parameters()).device
    images, labels = images.to(device), labels.to(device)
    learner = _learner(backbone, ways, head)
    call, start = functional(learner, batch_norm="running")
    tuned = fine_tune(
        lambda now: F.cross_entropy(call(now, images), labels), start, steps=options.steps, lr=options.rate
    )
    _fill(learner, tuned)
    if not options.calibration_steps:
        return Calibrated(learner, None)
    teacher = ModuleTeacher(learner, ways=ways, input_shape=backbone.input_shape, device=device)
    wanted = torch.arange(ways).repeat(options.images_per_class)
    pseudo = invert_images(
        teacher, wanted, steps=options.inversion_steps, generator=torch.Generator().manual_seed(seed)
    )
    _fill(learner, calibrate(learner, images, labels, pseudo, options))
    return Calibrated(learner, pseudo)


def calibrate(learner: Learner, images: Tensor, labels: Tensor, pseudo: Recovered, options: IcfilOptions) -> Parameters:
    """The learner's parameters after gradient descent on L_cal, divided by its number of pairs, over the backbone's."""
    features, _ = functional(learner.backbone, batch_norm="running")
    count = pairs(labels, pseudo.labels)

    def loss(now: Parameters) -> Tensor:
        backbone = {name.removeprefix(BACKBONE): value for name, value in now.items() if name.startswith(BACKBONE)}
        real, made = (F.normalize(features(backbone, x), dim=-1) for x in (images, pseudo.images))
        return calibration_loss(real, labels, made, pseudo.labels, temperature=options.temperature) / count

    start: Parameters = dict(learner.named_parameters())
    moving = [name for name in start if name.startswith(BACKBONE)]
    return fine_tune(loss, start, steps=options.calibration_steps, lr=options.calibration_rate, moving=moving)


def _learner(backbone: Backbone, ways: int, head: nn.Linear | None) -> Learner:
    with torch.random.fork_rng(devices=[]):
        learner = Learner(Backbone(backbone.config, backbone.input_shape), ways)
    learner.to(next(backbone.parameters()).device).eval()
    learner.backbone.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        learner.head.weight.copy_(torch.zeros_like(learner.head.weight) if head is None else head.weight[:ways])
        learner.head.bias.copy_(torch.zeros_like(learner.head.bias) if head is None else head.bias[:ways])
    return learner


def _fill(learner: Learner, parameters: Parameters) -> None:
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(parameters[name])
