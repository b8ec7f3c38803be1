"""Every method interrupted and taken up again: the same weights, and nothing that was paid for is asked again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts.gradients import GradientOptions
from contracts.meta_models import BackboneConfig
from contracts.methods import BidfMkdOptions, DistillAverageOptions, FreeOptions, PqdOptions, PurerOptions
from dfml.checkpoint import CheckpointFile
from dfml.memory import Answers
from dfml.methods import METHODS, bidf_mkd, distill, free, pqd, purer
from dfml.nets import weights
from dfml.plans import Limits, plan
from dfml.procedural import query_set
from dfml.teachers import ModuleTeacher
from dfml.training import Training

CONFIG = BackboneConfig(width=16)
SMALL: dict[str, Any] = {"ways": 3, "shots": 1, "inner_steps": 1, "second_order": False}
GUIDED = GradientOptions(source="guided", directions=1)
BIDF = BidfMkdOptions(
    **SMALL, images_per_class=2, iterations=1, directions=1, latent=4, generator_width=4, updates=6, tasks=1,
    replay_steps=1, queries=2, diversity=0, patience=1, frequencies=4,
)  # fmt: skip
FREE = FreeOptions(
    **SMALL, epochs=6, warm_up=1, teachers=1, images_per_class=4, latent=4, generator_width=2, generator_steps=2,
    conditional=True, queries=3, replay_tasks=1, patience=1,
)  # fmt: skip
PURER = PurerOptions(
    **SMALL, updates=6, images_per_class=3, teachers=1, episodes=1, adversarial_from=2, patience=1,
)  # fmt: skip


class Api:
    """A black box with three classes of 16 x 16 images, which remembers what it was asked."""

    ways, input_shape = 3, (3, 16, 16)

    def __init__(self, teacher: ModuleTeacher) -> None:
        self.queries = 0
        self.asked: list[Tensor] = []
        self._teacher = teacher

    def predict(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        self.asked += list(images.clone())
        return self._teacher.predict(images)


def _distilled(distil: Callable[..., Any], options: Any) -> Callable[..., Any]:
    """A method that learns from answers, which are asked for once: as the service does it."""

    def train(teachers: list[Any], config: BackboneConfig, **rest: Any) -> Any:
        planned = plan(options, Limits(50, 2), seed=0)
        images = torch.from_numpy(query_set(options.mixture, seed=0, size=(16, 16)).images(range(planned.images)))
        answers = pqd.ask([teacher._teacher for teacher in teachers], images, planned)
        return distil(answers, config, options, seed=0, **rest)

    return train


def _adaptive(train: Callable[..., Any], options: Any, queries: int = 2_000) -> Callable[..., Any]:
    return lambda teachers, config, **rest: train(teachers, config, options, queries=queries, seed=0, **rest)


def _white(train: Callable[..., Any], options: Any) -> Callable[..., Any]:
    return lambda teachers, config, **rest: train(
        [teacher._teacher for teacher in teachers], config, options, seed=0, **rest
    )


TRAININGS: dict[str, Callable[..., Any]] = {
    "pqd": _distilled(pqd.distil, PqdOptions(steps=6, batch=8, apis_per_image=1)),
    "pqd episodes": _distilled(pqd.distil, PqdOptions(steps=2, batch=8, apis_per_image=2, episodes=4)),
    "distill_average": _distilled(distill.distil, DistillAverageOptions(steps=3, batch=8)),
    "bidf_mkd": _adaptive(bidf_mkd.train, BIDF, 100),
    "bidf_mkd guided": _adaptive(bidf_mkd.train, BIDF.model_copy(update={"source": "guided"}), 120),
    "free": _white(free.train, FREE),
    "free zeroth-order": _adaptive(
        free.train, FREE.model_copy(update={"gradients": GradientOptions(source="zeroth-order", directions=1)})
    ),
    "purer": _white(purer.train, PURER),
    "purer guided": _adaptive(purer.train, PURER.model_copy(update={"gradients": GUIDED})),
}


def test_no_method_is_left_out() -> None:
    assert {name.split()[0] for name in TRAININGS} == set(METHODS)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_was_interrupted_goes_on_to_the_same_weights(
    name: str, make_teacher: Callable[..., ModuleTeacher], tmp_path: Path
) -> None:
    """Killed twice, each time a step after a state was kept: all that is lost is that step."""
    train, path = TRAININGS[name], tmp_path / "state.safetensors"
    every, stops = (1, ()) if name == "distill_average" else (2, (3, 5))

    def apis() -> list[Api]:
        return [Api(make_teacher(seed)) for seed in range(2)]

    whole = train(uninterrupted := apis(), CONFIG)
    first: list[Api] = []
    if name == "distill_average":  # its steps are APIs: in the midst of the second
        stops = (1,)
    for stop in stops:

        def killed(step: int, steps: int, metrics: dict[str, float], at: int = stop) -> None:
            if step == (at if name != "distill_average" else 4):
                raise KeyboardInterrupt

        taken = apis()
        first = first or taken
        with pytest.raises(KeyboardInterrupt):
            train(taken, CONFIG, checkpoint=CheckpointFile(path, every=every), on_step=killed)
    told: list[int] = []
    last = apis()
    file = CheckpointFile(path, every=every)
    parts = train(last, CONFIG, checkpoint=file, on_step=lambda step, *_: told.append(step))
    assert file.refused is None
    assert told == ([4, 5, 6] if name == "distill_average" else [5, 6])
    assert parts.metrics == whole.metrics
    one, two = weights(whole.backbone), weights(parts.backbone)
    assert all(torch.equal(one[name], two[name]) for name in one)
    for all_at_once, after in zip(uninterrupted, last, strict=True):
        # it counts on, and asked no image but those that follow
        assert after.queries == all_at_once.queries
        assert len(after.asked) < len(all_at_once.asked) or not all_at_once.asked or not after.asked
        ending = all_at_once.asked[len(all_at_once.asked) - len(after.asked) :]
        assert all(map(torch.equal, ending, after.asked))


def test_answers_that_come_while_it_learns_are_taken_in_again(
    make_teacher: Callable[..., ModuleTeacher], images: Tensor, tmp_path: Path
) -> None:
    """Killed after a second API came in, whose classes the head was widened for."""
    given = [make_teacher(seed).predict(images) for seed in range(2)]

    def answers(apis: int) -> Answers:
        return Answers(images, given[:apis], torch.ones(len(images), apis, dtype=torch.bool))

    def more(step: int, steps: int) -> Answers | None:
        return answers(2) if step == 2 else None

    def train(**rest: Any) -> pqd.Distilled:
        return pqd.distil(answers(1), CONFIG, PqdOptions(steps=6, batch=8), seed=0, more=more, **rest)

    def killed(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=CheckpointFile(path, every=4), on_step=killed)
    whole, told = train(), list[int]()
    parts = train(checkpoint=CheckpointFile(path), on_step=lambda step, *_: told.append(step))
    assert told == [5, 6]
    assert torch.equal(whole.head.weight, parts.head.weight)
    assert parts.metrics == whole.metrics


@pytest.mark.filterwarnings("ignore:.*meta parameter:UserWarning")
def test_a_state_goes_to_the_device_of_the_parts_that_take_it_up(tmp_path: Path) -> None:
    """Kept on the CPU whatever it was made on: the optimiser's moments follow their parameters, the generator stays."""

    def begun(device: str, draws: torch.Generator) -> tuple[Training, nn.Module, torch.optim.Optimizer]:
        network = nn.Conv2d(3, 4, 3, device=device).to(memory_format=torch.channels_last)
        optimiser = torch.optim.Adam(network.parameters())
        training = Training(CheckpointFile(tmp_path / "state", every=1), ["told"])
        training.resume(draws, network=network, optimiser=optimiser)
        return training, network, optimiser

    training, network, optimiser = begun("cpu", random := torch.Generator().manual_seed(1))
    network(torch.rand(2, 3, 8, 8, generator=random)).sum().backward()
    optimiser.step()
    training.keep(1)
    resumed, elsewhere, moments = begun("meta", other := torch.Generator().manual_seed(2))
    assert resumed.done == 1
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}
    states = [state for held in moments.state.values() for state in (held["exp_avg"], held["exp_avg_sq"])]
    assert {state.device.type for state in states} == {"meta"}
    assert states[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.rand(3, generator=other).equal(torch.rand(3, generator=random))
