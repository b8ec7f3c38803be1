import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from contracts.zoo import Manifest, Normalisation, TeacherEntry
from dfml.datasets import open_dataset
from dfml.nets import build_classifier, weights
from dfml.teachers import BadTeacher, ModuleTeacher, Teacher, load_teacher

MakeTeacher = Callable[..., ModuleTeacher]


def test_answers_are_probabilities_and_images_are_counted(make_teacher: MakeTeacher, images: Tensor) -> None:
    teacher = make_teacher(0)
    assert isinstance(teacher, Teacher)
    answers = teacher.predict(images)
    assert answers.shape == (len(images), 3)
    assert answers.dtype == torch.float32
    assert torch.allclose(answers.sum(1), torch.ones(len(images)))
    teacher.predict(images[:7])
    assert teacher.queries == len(images) + 7


def test_an_answer_does_not_depend_on_its_batch(make_teacher: MakeTeacher, images: Tensor) -> None:
    teacher = make_teacher(0)
    alone = torch.cat([teacher.predict(image[None]) for image in images])
    assert torch.allclose(teacher.predict(images), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 3, 16, 15), r"send \(n, 3, 16, 16\)"),
        (torch.zeros(0, 3, 16, 16), "n >= 1"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "send uint8"),
        (torch.full((2, 3, 16, 16), float("nan")), "NaN"),
        (torch.full((2, 3, 16, 16), 1.5), r"\[0, 1\]"),
    ],
)
def test_bad_images_cost_nothing(make_teacher: MakeTeacher, bad: Tensor, message: str) -> None:
    teacher = make_teacher(0)
    with pytest.raises(ValueError, match=message):
        teacher.predict(bad)
    assert teacher.queries == 0


@pytest.fixture
def zoo() -> tuple[Manifest, bytes]:
    normalise = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    net = build_classifier(
        24, (3, 16, 16), 2, normalisation=normalise, conv_bias=True, generator=torch.Generator().manual_seed(0)
    )
    held = save(weights(net))
    entry = TeacherEntry(file="00.safetensors", classes=["cat", "dog"], sha256=hashlib.sha256(held).hexdigest())
    manifest = Manifest(dataset="d", width=24, conv_bias=True, input=(3, 16, 16), normalise=normalise, teachers=[entry])
    return manifest, held


def test_a_zoo_file_loads_from_path_or_bytes(zoo: tuple[Manifest, bytes], images: Tensor, tmp_path: Path) -> None:
    manifest, held = zoo
    (tmp_path / "00.safetensors").write_bytes(held)
    teacher = load_teacher(manifest, manifest.teachers[0], tmp_path / "00.safetensors")
    assert (teacher.ways, teacher.input_shape) == (2, (3, 16, 16))
    assert torch.equal(teacher.predict(images), load_teacher(manifest, manifest.teachers[0], held).predict(images))


def test_an_altered_file_is_refused(zoo: tuple[Manifest, bytes]) -> None:
    manifest, held = zoo
    with pytest.raises(BadTeacher, match="SHA-256"):
        load_teacher(manifest, manifest.teachers[0], held[:-1] + b"!")


@pytest.mark.parametrize("change", [lambda held: held[:40], lambda held: b"", lambda held: b"\xff" * 100])
def test_a_file_that_is_none_is_refused_without_hash_too(zoo: tuple[Manifest, bytes], change: object) -> None:
    manifest, held = zoo
    entry = manifest.teachers[0].model_copy(update={"sha256": None})
    with pytest.raises(BadTeacher, match=r"00\.safetensors"):
        load_teacher(manifest, entry, change(held))  # type: ignore[operator]


def test_another_architecture_is_refused(zoo: tuple[Manifest, bytes]) -> None:
    manifest, held = zoo
    with pytest.raises(BadTeacher, match="expected"):
        load_teacher(manifest.model_copy(update={"width": 16}), manifest.teachers[0], held)


@pytest.mark.data
def test_published_teachers_reach_the_accuracy_of_their_manifest(data_dir: Path) -> None:
    """On 200 images a class, of which most were trained on: at least the held-out accuracy, less sampling error."""
    folder = data_dir / "teachers" / "cifar-fs-conv4"
    manifest = Manifest.model_validate(json.loads((folder / "manifest.json").read_text()))
    dataset = open_dataset(manifest.dataset, data_dir)
    images, names = dataset.images("train"), dataset.classes("train")
    assert len(manifest.teachers) == 40
    for entry in manifest.teachers[:4]:
        teacher = load_teacher(manifest, entry, folder / entry.file)
        shown = images[[names.index(name) for name in entry.classes]]
        right = teacher.predict(shown.flatten(0, 1)).argmax(-1).view(5, -1) == torch.arange(5)[:, None]
        assert entry.held_out_accuracy is not None
        assert right.double().mean() > entry.held_out_accuracy - 0.03
        assert np.all(right.double().mean(1).numpy() > 0.5)  # labels are in the manifest's order
