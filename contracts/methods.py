"""The options of every method, each a validated model; `dfml.methods` takes the same models as its config."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from contracts._base import Input, Place, refuse
from contracts.gradients import GradientOptions

Source = Literal["leaves", "objects", "spectra", "mixes"]
"""Kinds of procedural images; `dfml.procedural` makes them."""


class ProceduralQueries(Input):
    """What methods share that ask about images made from a seed, all planned before the first is sent."""

    images: int | None = Field(
        None, ge=16, le=1_000_000, description="Size of the shared image pool. Default: planned from the budget."
    )
    apis_per_image: int | None = Field(
        None,
        ge=1,
        description="Ask all APIs alike: how many of them, drawn at random, see each image. Default: few APIs are asked where "
        "the budget is small, all of them about the same images; see images_per_api.",
    )
    images_per_api: int | None = Field(
        None,
        ge=1,
        description="Images of each of the first eight APIs, drawn at random, before a further one is asked; once all have so "
        "many, all get more. Default: 2048. Does nothing beside apis_per_image.",
    )
    mixture: dict[Source, Annotated[float, Field(ge=0, le=1000)]] = Field(
        {"leaves": 1.0, "objects": 1.0, "spectra": 1.0, "mixes": 1.0},
        description="Relative shares of the image sources in the pool.",
    )

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if not sum(self.mixture.values()):
            refuse(type(self).__name__, [(("mixture",), "give at least one source a share above zero")])
        return self


class PqdOptions(ProceduralQueries):
    """Procedural query distillation: ask every API about images made from a seed, distil all answers into one backbone.

    What each value does to accuracy is measured in `docs/methods/pqd.md`.
    """

    name: Literal["pqd"] = Field("pqd", description="The method.")
    relation: float = Field(0.3, ge=0, le=10, description="Weight of the relational term between images.")
    floor: float = Field(
        1e-4,
        gt=0,
        lt=0.5,
        description="Probabilities are clamped from below at this before the log; rounded ones at half a unit at least.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Optimiser steps. Default: 1500 for a small pool, 3000 from 512 images, 9000 from 2048.",
    )
    batch: int = Field(64, ge=4, le=4096, description="Images per optimiser step.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak of the one-cycle schedule. Default: 8e-3 for Conv4, 5e-3 for ResNets."
    )
    weight_decay: float | None = Field(
        None, ge=0, le=1, description="AdamW's weight decay. Default: 1e-3, and 1e-2 from 1536 images."
    )
    shift: int | None = Field(
        None,
        ge=0,
        le=16,
        description="Augmentation: random shift of up to so many pixels, both axes. Default: 2, and 4 from 1536 images.",
    )
    scale: float | None = Field(
        None,
        ge=0,
        le=0.9,
        description="Augmentation: height and width changed at random by up to this part, each by itself. Default: 0, and "
        "0.25 from 1536 images.",
    )
    flip: bool = Field(True, description="Augmentation: random horizontal flip.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Numbers that the network computes with while it learns; its weights stay float32. bfloat16 takes two "
        "thirds of the time or less where the machine has instructions for it, and several times as long where it has not.",
    )
    episodes: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Updates after that on few-shot tasks, whose classes are what the APIs likeliest named the images.",
    )


class DistillAverageOptions(ProceduralQueries):
    """A baseline: a network distilled from each API's answers alone, all from one start, and the mean of their weights."""

    name: Literal["distill_average"] = Field("distill_average", description="The method.")
    steps: int = Field(300, ge=1, le=1_000_000, description="Optimiser steps for each API.")
    batch: int = Field(64, ge=4, le=4096, description="Images per optimiser step.")
    learning_rate: float = Field(5e-3, gt=0, le=1, description="Peak of the one-cycle schedule.")


MetaLearnerName = Literal["maml", "anil", "protonet", "ridge"]
"""How a meta-model learns from a few-shot task; `dfml.numerics.meta_learners` has them."""

_Learner = Annotated[
    MetaLearnerName,
    Field(
        description="What learns from tasks: `maml`, `anil` (the head alone moves), `protonet` (class means) or `ridge` (a "
        "ridge regression as head). The papers' is maml; the others cost a third of its time or less."
    ),
]


class FreeOptions(Input):
    """FREE (Hu et al. 2024): a meta-generator inverts each teacher in five steps, aligned distillation, replay. White-box.

    Defaults are those of the released code, except where `docs/methods/free.md` says why not. They are meant for a GPU: on a
    CPU give fewer epochs and a narrower generator.
    """

    name: Literal["free"] = Field("free", description="The method.")
    epochs: int = Field(999, ge=1, le=1_000_000, description="Rounds of recovering, aligning and replaying.")
    warm_up: int = Field(20, ge=0, description="First epochs, in which the generator learns alone and nothing is kept.")
    teachers: int = Field(4, ge=1, le=1000, description="Teachers drawn each epoch; all of them, if there are fewer.")
    images_per_class: int = Field(20, ge=2, le=1000, description="Images recovered of each class of a teacher at once.")
    latent: int = Field(256, ge=1, le=4096, description="Noise numbers that the generator makes an image from.")
    generator_width: int = Field(64, ge=1, le=512, description="Channels of the generator's last hidden layer.")
    conditional: bool = Field(False, description="The generator is told the class. The released one is not.")
    canvas: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of a recovered image that is one of pqd's `objects`, drawn at random; the generator makes the rest. "
        "0 is as published, and gives tasks too easy to learn from: see docs/methods/free.md.",
    )
    generator_steps: int = Field(5, ge=1, le=10_000, description="Steps in which it is adapted to a teacher.")
    generator_rate: float = Field(1e-3, gt=0, le=1, description="Adam's rate in these steps.")
    latent_rate: float = Field(1e-3, ge=0, le=1, description="Adam's rate for the noise, in the same steps.")
    meta_rate: float = Field(1e-3, gt=0, le=1, description="Adam's rate for the meta-generator.")
    meta_gradient: Literal["last", "all"] = Field(
        "last",
        description="Which steps' gradients the meta-generator learns from: FREE's last, or all as in its parent.",
    )
    batch_norm: float = Field(
        0.1, ge=0, le=1000, description="Weight of the batch-norm statistics, where there are any."
    )
    adversarial: float = Field(1.0, ge=0, le=1000, description="Weight of disagreement with the meta-model.")
    memory: int = Field(400, ge=2, le=100_000, description="Recovered images kept of each class.")
    align_rate: float = Field(1e-3, gt=0, le=1, description="Rate of the walk over the teachers.")
    align_by: Literal["adam", "sgd"] = Field(
        "adam", description="What walks: the theory has sgd, the released code adam."
    )
    align_step: float = Field(
        0.3, ge=0, le=1, description="Part of the walk that the meta-model takes; 0 leaves the alignment out."
    )
    divergence: Literal["kl", "released"] = Field(
        "kl", description="Distillation loss; `released` repeats the fault of the published code, for ablations."
    )
    ways: int = Field(5, ge=2, le=100, description="Classes of a replayed task.")
    shots: int = Field(5, ge=1, le=100, description="Support images a class of a replayed task.")
    queries: int = Field(15, ge=1, le=1000, description="Query images a class of a replayed task.")
    replay_tasks: int = Field(10, ge=1, le=1000, description="Replayed tasks an update.")
    patience: int = Field(10, ge=0, description="Replay ends after so many updates without a better accuracy; 0: none.")
    replay_updates: int | None = Field(None, ge=1, description="Most replay updates an epoch. Default: patience alone.")
    inner_steps: int = Field(5, ge=1, le=1000, description="MAML's steps on the support.")
    inner_rate: float = Field(0.01, gt=0, le=10, description="MAML's rate on the support.")
    outer_rate: float = Field(1e-3, gt=0, le=1, description="Adam's rate for the meta-model.")
    second_order: bool = Field(True, description="Differentiate through the inner steps; false: first-order MAML.")
    learner: _Learner = "maml"
    gradients: GradientOptions = Field(GradientOptions(), description="Where the teachers' gradients come from.")

    @model_validator(mode="after")
    def _tasks_fit_in_what_is_kept(self) -> "FreeOptions":
        if self.shots + self.queries > min(self.images_per_class, self.memory):
            refuse("FreeOptions", [(("images_per_class",), "give at least shots + queries, and a memory for as many")])
        if self.warm_up >= self.epochs:
            refuse("FreeOptions", [(("warm_up",), "give fewer than epochs: after it the meta-model begins to learn")])
        return self


class PurerOptions(Input):
    """PURER (Hu et al. 2023): an episode curriculum of pseudo images that are inverted while the meta-model learns. White-box.

    Defaults are those of the released code for 5 shots, except where `docs/methods/purer.md` says why not. They are meant for a
    GPU: on a CPU give fewer updates and images.
    """

    name: Literal["purer"] = Field("purer", description="The method.")
    updates: int = Field(60_000, ge=1, le=10_000_000, description="Updates of the meta-model.")
    images_per_class: int = Field(20, ge=2, le=1000, description="Pseudo images of each class of each teacher.")
    teachers: int | None = Field(None, ge=1, description="Teachers drawn for each update. Default: all.")
    initial: Literal["procedural", "noise"] = Field(
        "procedural",
        description="What the pseudo images begin as: `noise`, as published, or pqd's `objects`. Noise gives tasks too "
        "easy to learn from: see docs/methods/purer.md.",
    )
    image_rate: float = Field(0.02, gt=0, le=1, description="Adam's rate for the pixels, which are in [0, 1].")
    total_variation: float = Field(1e-4, ge=0, description="Weight of the total variation.")
    batch_norm: float = Field(0.1, ge=0, description="Weight of the batch-norm statistics, where there are any.")
    length: float = Field(1e-5, ge=0, description="Weight of the images' Euclidean norm.")
    adversarial: float = Field(10.0, ge=0, description="Weight of the meta-model's loss, which harder episodes raise.")
    adversarial_from: int = Field(4000, ge=0, description="First update at which harder episodes may be asked for.")
    patience: int = Field(6, ge=1, description="They are, after so many updates without a better accuracy.")
    start: Literal["random", "average"] = Field(
        "random", description="The meta-model's first weights; `average` of the teachers', which must all be like it."
    )
    episodes: int = Field(4, ge=1, le=1000, description="Episodes an update.")
    shift: int = Field(
        4,
        ge=0,
        le=16,
        description="Support and query of an episode are rolled by up to so many pixels, and mirrored or not; 0: neither, as "
        "published.",
    )
    ways: int = Field(5, ge=2, le=100, description="Classes of an episode.")
    shots: int = Field(5, ge=1, le=100, description="Support images a class; the rest of a class's images are queries.")
    inner_steps: int = Field(1, ge=1, le=1000, description="MAML's steps on the support.")
    inner_rate: float = Field(0.01, gt=0, le=10, description="MAML's rate on the support.")
    outer_rate: float = Field(1e-3, gt=0, le=1, description="Adam's rate for the meta-model.")
    second_order: bool = Field(True, description="Differentiate through the inner steps; false: first-order MAML.")
    learner: _Learner = "maml"
    gradients: GradientOptions = Field(GradientOptions(), description="Where the teachers' gradients come from.")

    @model_validator(mode="after")
    def _queries_are_left(self) -> "PurerOptions":
        if self.shots >= self.images_per_class:
            refuse("PurerOptions", [(("shots",), "give fewer than images_per_class: the rest are the queries")])
        return self


class IcfilOptions(Input):
    """ICFIL, PURER's calibration at meta-test time. The paper gives none of these values; see `docs/methods/purer.md`."""

    steps: int = Field(10, ge=0, le=1000, description="Fine-tuning steps on the support.")
    rate: float = Field(0.01, gt=0, le=10, description="Their rate.")
    images_per_class: int = Field(10, ge=1, le=1000, description="Pseudo images inverted from the adapted network.")
    inversion_steps: int = Field(50, ge=1, le=10_000, description="Steps of that inversion.")
    temperature: float = Field(0.5, gt=0, le=100, description="Of the calibration loss, on normalised features.")
    calibration_steps: int = Field(5, ge=0, le=1000, description="Steps on the calibration loss; 0: fine-tuning alone.")
    calibration_rate: float = Field(0.01, gt=0, le=10, description="Their rate.")


class BidfMkdOptions(Input):
    """BiDf-MKD (Hu et al. 2023): recover each API's task by zeroth-order gradients, learn the tasks by bi-level distillation.

    The paper's estimator is `directions` 100, `antithetic` off, no `frequencies`, `step` 0.005, `iterations` 200. Every
    equation is in `docs/methods/bidf_mkd.md`.
    """

    name: Literal["bidf_mkd"] = Field("bidf_mkd", description="The method.")
    images_per_class: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Images recovered of a class, for the support set and for the query set each. "
        "Default: 30, fewer where the budget is tight.",
    )
    iterations: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Gradient steps a recovered set. Default: 200, fewer where the budget is tight.",
    )
    source: Literal["zeroth-order", "surrogate", "guided"] = Field(
        "zeroth-order",
        description="Where the gradient of an API's answer comes from: differences along random directions, a local network "
        "taught by all its answers so far, which costs an image one query a step, or differences along both.",
    )
    directions: int = Field(9, ge=1, le=10_000, description="Directions of a gradient estimate.")
    antithetic: bool = Field(
        False, description="Two queries a direction, both ways. Otherwise one, and one more for the image itself."
    )
    orthogonal: bool = Field(False, description="Directions of an image at right angles to each other.")
    frequencies: int | None = Field(
        8,
        ge=1,
        le=1024,
        description="Directions made of this many lowest frequencies down and across. Null: of pixels. Images alone.",
    )
    step: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Length of a step along a direction. Default: from the precision of the API's answers.",
    )
    eight_bit: bool = Field(
        False, description="Round images to 8 bits before they are asked about, as files of images are."
    )
    space: Literal["pixels", "latent"] = Field(
        "pixels", description="Where gradients are estimated: at the images, or at the noise of an untrained generator."
    )
    latent: int = Field(256, ge=1, le=4096, description="Noise numbers of the generator.")
    generator_width: int = Field(64, ge=4, le=512, description="Channels of the generator.")
    generator_rate: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate for generator and noise.")
    canvas: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a recovered image that is one of pqd's `objects`, each another; the generator makes the rest. "
        "0 is as published.",
    )
    diversity: float = Field(
        20.0,
        ge=0,
        le=1000,
        description="Weight of the term that keeps the images of a class apart; it costs no queries.",
    )
    boundary: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Weight of the boundary term, which keeps query sets hard for the adapted student.",
    )
    boundary_from: int | None = Field(
        None,
        ge=0,
        description="Update from which it counts. Default: after a fifteenth of the updates, as in the paper.",
    )
    inner_steps: int = Field(10, ge=1, le=100, description="Steps of the inner loop on a recovered support set.")
    replay_steps: int = Field(5, ge=1, le=100, description="Steps of the inner loop on a task from the memory.")
    inner_rate: float = Field(0.01, gt=0, le=10, description="Learning rate of the inner loop.")
    second_order: bool = Field(True, description="Differentiate through the inner loop's gradients.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate for the meta-model.")
    updates: int = Field(1000, ge=1, le=1_000_000, description="Updates of the meta-model. The paper's: 60 000.")
    tasks: int = Field(4, ge=1, le=256, description="Tasks an update.")
    ways: int = Field(5, ge=2, le=100, description="Classes of a task from the memory.")
    shots: int = Field(5, ge=1, le=1000, description="Support images a class of a task from the memory, at most.")
    queries: int = Field(15, ge=1, le=1000, description="Query images a class of a task from the memory, at most.")
    patience: int = Field(
        200,
        ge=1,
        description="Updates without a better accuracy after which the next API is visited, if its turn has not come before.",
    )
    memory: int = Field(120, ge=2, le=100_000, description="Recovered images kept of each class of each API.")
    learner: _Learner = "maml"
    released_divergence: bool = Field(
        False, description="Distil by the faulty divergence of the released code, to measure what it costs."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "BidfMkdOptions":
        found: list[tuple[Place, str]] = []
        if self.space == "latent" and self.frequencies is not None:
            found.append((("frequencies",), "noise has no frequencies: set it to null in latent space"))
        if self.source != "zeroth-order":
            if self.space == "latent":
                found.append((("space",), f"{self.source} gives gradients of images: set it to pixels"))
            if self.antithetic:
                found.append((("antithetic",), f"{self.source} has no pairs: turn it off"))
            if self.orthogonal:
                found.append((("orthogonal",), f"goes with zeroth-order alone, not with {self.source}: turn it off"))
        refuse("BidfMkdOptions", found)
        return self


_METHODS: dict[str, type[Input]] = {
    "pqd": PqdOptions,
    "bidf_mkd": BidfMkdOptions,
    "free": FreeOptions,
    "purer": PurerOptions,
    "distill_average": DistillAverageOptions,
}
METHOD_NAMES: tuple[str, ...] = tuple(_METHODS)


def _by_name(given: Any) -> Any:
    """Options as the model that their name says, `pqd` where there is none: a fault's place need not repeat the name."""
    if not isinstance(given, dict):
        return given
    name = given.get("name", "pqd")
    if name not in METHOD_NAMES:
        refuse("MethodOptions", [(("name",), f"there is no such method: choose one of {', '.join(METHOD_NAMES)}")])
    return _METHODS[name].model_validate(given)


MethodOptions = Annotated[
    PqdOptions | BidfMkdOptions | FreeOptions | PurerOptions | DistillAverageOptions,
    Field(discriminator="name"),
    BeforeValidator(_by_name),
]
"""How a job learns: the options of one method, told apart by `name`."""

LEARN_AS_ANSWERS_COME = frozenset({"pqd"})
"""Methods that can begin on a part of the answers and take in the others later."""
