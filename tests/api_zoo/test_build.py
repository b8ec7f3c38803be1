"""Building a zoo: the same seed gives the same files, an interrupted build goes on, nobody's folder is overwritten."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from api_zoo import build as building
from api_zoo.build import build, statistics
from api_zoo.folder import BadZoo, open_folder, read_manifest
from api_zoo.scenarios import BuildPlan, plan_for
from contracts.zoo import TeacherEntry
from dfml import supervised
from dfml.datasets import open_dataset
from dfml.teachers import load_teacher

PLAN = BuildPlan(split="val", teachers=2, ways=(2,), width=16, seed=5, epochs=1)


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trains in this process; the numbers of the teachers that were trained."""
    numbers: list[int] = []

    def train_all(training, missing, processes):
        for number in missing:
            numbers.append(number)
            yield training(number)

    monkeypatch.setattr(building, "_train_all", train_all)
    return numbers


def make(folder: Path, plan: BuildPlan = PLAN, **more) -> list[tuple[int, int, str]]:
    told: list[tuple[int, int, str]] = []
    build(
        plan, folder, None, processes=1, on_teacher=lambda done, of, entry: told.append((done, of, entry.file)), **more
    )
    return told


def test_the_folder_serves_what_its_seed_says(tmp_path: Path, trained_here: list[int]) -> None:
    assert make(tmp_path / "a") == [(1, 2, "00.safetensors"), (2, 2, "01.safetensors")]
    make(tmp_path / "b")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    names = open_dataset("glyphs", None).classes("val")
    for number, entry in enumerate(manifest["teachers"]):
        assert entry["classes"] == PLAN.classes(number, names)
        assert 0 <= entry["held_out_accuracy"] <= 1
        first, second = ((tmp_path / folder / entry["file"]).read_bytes() for folder in "ab")
        assert first == second
    assert list(open_folder(tmp_path / "a")) == ["glyphs-00", "glyphs-01"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "00.safetensors",
        "01.safetensors",
        "build.json",
        "manifest.json",
    ]
    make(tmp_path / "c", replace(PLAN, seed=6))
    other = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert other["teachers"][0]["sha256"] != manifest["teachers"][0]["sha256"]


def test_a_complete_zoo_is_left_as_it_is(tmp_path: Path, trained_here: list[int]) -> None:
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert make(tmp_path) == []
    assert trained_here == [0, 1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_an_interrupted_build_goes_on_and_trains_nothing_twice(tmp_path: Path, trained_here: list[int]) -> None:
    def stop(done: int, of: int, entry: TeacherEntry) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(PLAN, tmp_path, None, processes=1, on_teacher=stop)
    with pytest.raises(BadZoo, match=r"no manifest\.json"):
        open_folder(tmp_path)
    assert make(tmp_path) == [(2, 2, "01.safetensors")]
    assert trained_here == [0, 1]
    assert len(open_folder(tmp_path)) == 2


def test_half_a_teacher_is_trained_again(tmp_path: Path, trained_here: list[int]) -> None:
    with pytest.raises(ZeroDivisionError):
        build(PLAN, tmp_path, None, processes=1, on_teacher=lambda *_: 1 // 0)
    (tmp_path / "00.safetensors").write_bytes(b"half")
    (tmp_path / "..00.training.safetensors.4711").write_bytes(b"half a checkpoint")
    make(tmp_path)
    assert not [path for path in tmp_path.iterdir() if "training" in path.name]
    assert trained_here == [0, 0, 1]
    assert len(open_folder(tmp_path)) == 2


@pytest.mark.parametrize("changed", [{"seed": 6}, {"teachers": 3}, {"ways": (3,)}, {"epochs": 2}, {"split": "train"}])
def test_another_build_is_not_overwritten(tmp_path: Path, trained_here: list[int], changed: dict) -> None:
    make(tmp_path)
    (name,) = changed
    with pytest.raises(BadZoo, match=rf"another build, of {name} .*give another --out"):
        make(tmp_path, replace(PLAN, **changed))


def test_a_zoo_from_elsewhere_is_not_overwritten(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    with pytest.raises(BadZoo, match="not built here"):
        make(tmp_path)


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text("{")
    with pytest.raises(BadZoo, match="damaged"):
        make(tmp_path)


@pytest.mark.parametrize("ways", [1, 31])
def test_ways_that_the_split_has_not_are_refused(tmp_path: Path, ways: int) -> None:
    with pytest.raises(ValueError, match="give 2 to 30"):
        make(tmp_path / "zoo", replace(PLAN, ways=(2, ways)))
    assert not (tmp_path / "zoo").exists()


def test_classes_are_drawn_by_seed_and_number_for_ever() -> None:
    names = tuple("abcdefgh")
    drawn = [BuildPlan(seed=3, ways=(3,)).classes(number, names) for number in range(3)]
    assert drawn == [["g", "e", "a"], ["g", "b", "a"], ["g", "e", "d"]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of data sets with the image folder `blots`: eight classes of ten images."""
    for number in range(8):
        folder = tmp_path / "data" / "blots" / f"blot-{number}"
        folder.mkdir(parents=True)
        for each in range(10):
            Image.new("RGB", (40, 20), (30 * number, 20 * each, 250 if number % 2 else 5)).save(folder / f"{each}.png")
    return tmp_path / "data"


def test_teachers_of_every_kind_share_a_folder_and_are_hosted(
    tmp_path: Path, trained_here: list[int], pictures: Path
) -> None:
    plan = BuildPlan(
        datasets=("glyphs", "folder:blots"),
        split="train",
        teachers=6,
        ways=(2, 4),
        architectures=("conv4", "resnet10", "resnet18"),
        sides=(16, 20),
        own_statistics=True,
        width=16,
        epochs=1,
    )
    folder = tmp_path / "zoo"
    build(plan, folder, pictures, processes=1, on_teacher=lambda *_: None)
    manifest = read_manifest(folder)
    networks = [manifest.network_of(entry) for entry in manifest.teachers]
    assert [network.backbone for network in networks] == [
        each for each in ("conv4", "resnet10", "resnet18") for _ in range(2)
    ]
    assert {network.input for network in networks} == {(3, 16, 16), (3, 20, 20)}
    assert {len(entry.classes) for entry in manifest.teachers} == {2, 4}
    assert len({network.normalise for network in networks}) > 3
    models = open_folder(folder)
    assert list(models) == [f"{'folder-blots' if k % 2 else 'glyphs'}-{k:02d}" for k in range(6)]
    for model, entry, network in zip(models.values(), manifest.teachers, networks, strict=True):
        asked = torch.randint(0, 256, (3, *network.input), dtype=torch.uint8)
        assert model.metadata(8).inputs[0].shape == [-1, *network.input]
        plain = load_teacher(manifest, entry, folder / entry.file).predict(asked)
        torch.testing.assert_close(model.predict(asked), plain, atol=1e-5, rtol=1e-4)


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 256, (2, 5, 3, 4, 4), dtype=torch.uint8)
    images[:, :, 2] = 51
    found = statistics(images)
    pixels = images.double().numpy() / 255
    assert found.mean == tuple(pixels.mean((0, 1, 3, 4)).round(4))
    assert found.std[:2] == tuple(pixels.std((0, 1, 3, 4)).round(4)[:2])
    assert (found.mean[2], found.std[2]) == (0.2, 0.01)


def test_scenarios_take_turns_in_all_that_differs() -> None:
    plan = plan_for("mh", ["glyphs", "cub"], teachers=12)
    lessons = [plan.lesson(number) for number in range(12)]
    met = Counter((lesson.dataset, lesson.backbone) for lesson in lessons)
    assert set(met.values()) == {2}
    assert len(met) == 6
    assert {lesson.ways for lesson in lessons} == {3, 5, 8}
    assert plan.own_statistics
    assert plan_for("sh", []).architectures == ("conv4", "resnet10", "resnet18")
    assert plan_for("ss", []) == BuildPlan()


@pytest.mark.parametrize(
    ("scenario", "datasets", "architectures", "told"),
    [
        ("ss", ["glyphs", "cub"], [], "give mh"),
        ("sh", ["glyphs", "cub"], [], "give mh"),
        ("mh", ["glyphs"], [], "give --dataset twice"),
        ("mh", ["glyphs", "glyphs"], [], "give --dataset twice"),
        ("ss", [], ["conv4", "resnet10"], "ss has one architecture"),
        ("sh", [], ["conv4"], "sh has several"),
    ],
)
def test_what_is_no_such_scenario_is_refused(
    scenario: str, datasets: list[str], architectures: list[str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        plan_for(scenario, datasets, architectures=architectures)


def test_a_teacher_goes_on_from_its_checkpoint(
    tmp_path: Path, trained_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, teachers=1, epochs=2)
    make(tmp_path / "whole", plan)
    real = supervised.augment
    batches: list[int] = []

    def until(last: int, images, **options):
        batches.append(len(images))
        if len(batches) > last:
            raise KeyboardInterrupt
        return real(images, **options)

    monkeypatch.setattr("dfml.supervised.augment", lambda images, **options: until(4, images, **options))
    with pytest.raises(KeyboardInterrupt):  # in the second of two epochs of three batches
        make(tmp_path / "parts", plan)
    assert (tmp_path / "parts" / ".00.training.safetensors").exists()
    monkeypatch.setattr("dfml.supervised.augment", lambda images, **options: until(99, images, **options))
    make(tmp_path / "parts", plan)
    assert len(batches) == 5 + 3  # the second epoch again, the first not
    assert (tmp_path / "parts" / "00.safetensors").read_bytes() == (tmp_path / "whole" / "00.safetensors").read_bytes()
    assert not (tmp_path / "parts" / ".00.training.safetensors").exists()
    assert read_manifest(tmp_path / "parts").teachers[0].seconds is None  # of which part would it be?


@pytest.mark.process
def test_processes_give_the_same_files_as_one(tmp_path: Path) -> None:
    told = make(tmp_path / "one")
    build(PLAN, tmp_path / "two", None, processes=2, on_teacher=lambda *_: None)
    assert len(told) == 2
    for name in ("00.safetensors", "01.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
