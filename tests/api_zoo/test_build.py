"""Building a zoo: the same seed gives the same files, an interrupted build goes on, nobody's folder is overwritten."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from api_zoo import build as building
from api_zoo.build import BuildPlan, build, train_one
from api_zoo.folder import BadZoo, open_folder
from contracts.zoo import TeacherEntry
from dfml.datasets import open_dataset

PLAN = BuildPlan("glyphs", "val", teachers=2, ways=2, width=16, seed=5, epochs=1)


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trains in this process; the numbers of the teachers that were trained."""
    numbers: list[int] = []

    def train_all(plan, folder, data, missing, processes):
        for number in missing:
            numbers.append(number)
            yield train_one(plan, folder, data, number)

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
    make(tmp_path)
    assert trained_here == [0, 0, 1]
    assert len(open_folder(tmp_path)) == 2


@pytest.mark.parametrize("changed", [{"seed": 6}, {"teachers": 3}, {"ways": 3}, {"epochs": 2}, {"split": "train"}])
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
        make(tmp_path / "zoo", replace(PLAN, ways=ways))
    assert not (tmp_path / "zoo").exists()


def test_classes_are_drawn_by_seed_and_number_for_ever() -> None:
    names = tuple("abcdefgh")
    drawn = [BuildPlan(seed=3, ways=3).classes(number, names) for number in range(3)]
    assert drawn == [["g", "e", "a"], ["g", "b", "a"], ["g", "e", "d"]]


@pytest.mark.process
def test_processes_give_the_same_files_as_one(tmp_path: Path) -> None:
    told = make(tmp_path / "one")
    build(PLAN, tmp_path / "two", None, processes=2, on_teacher=lambda *_: None)
    assert len(told) == 2
    for name in ("00.safetensors", "01.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
