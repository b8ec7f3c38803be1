import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfml.datasets import NAMES, DatasetMissing, glyphs, open_dataset


@pytest.fixture
def small_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "SPLITS", {"train": range(3), "val": range(3, 5), "test": range(5, 6)})
    monkeypatch.setattr(glyphs, "_DRAWN", glyphs._Drawn())


def test_glyphs_has_200_classes_that_no_two_splits_share() -> None:
    dataset = open_dataset("glyphs", None)
    names = [dataset.classes(split) for split in ("train", "val", "test")]
    assert [len(part) for part in names] == [120, 30, 50]
    assert len(set().union(*names)) == 200


def test_glyphs_are_the_same_for_ever(small_glyphs: None) -> None:
    images = open_dataset("glyphs", None).images("val")
    assert images.shape == (2, 100, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert glyphs.VERSION == 1
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert digest == "9c99d489df5a0f6958f16b350ee38191ac358bd242d7a7c5ee7dd783c3d7a047", (
        "pixels changed: raise VERSION, and this digest with it"
    )
    assert open_dataset("glyphs", None).images("val") is images  # drawn once a process


def test_another_seed_gives_other_glyphs(small_glyphs: None) -> None:
    assert not torch.equal(glyphs.Glyphs(seed=1).images("test"), glyphs.Glyphs().images("test"))


def test_glyphs_of_a_class_differ(small_glyphs: None) -> None:
    images = glyphs.Glyphs().images("train")
    assert len(images.flatten(2).flatten(0, 1).unique(dim=0)) == 300


def png(value: int, side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


FILES = {
    "cifar100/splits/bertinetto/train.txt": b"bee\napple\n",
    "cifar100/splits/bertinetto/val.txt": b"cat\n",
    "cifar100/splits/bertinetto/test.txt": b"wolf\n",
    "cifar100/data/apple/a_2.png": png(20),
    "cifar100/data/apple/a_1.png": png(10),
    "cifar100/data/apple/a_3.png": png(30),
    "cifar100/data/bee/b_1.png": png(40),
    "cifar100/data/bee/b_2.png": png(50),
    "cifar100/data/cat/c_1.png": png(60, side=31),
}


def as_zip(root: Path) -> None:
    with zipfile.ZipFile(root / "cifar-fs.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)


def as_folder(root: Path, prefix: str = "") -> None:
    for name, content in FILES.items():
        path = root / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def as_named_folder(root: Path) -> None:
    as_folder(root, "cifar-fs")


@pytest.mark.parametrize("lay_out", [as_zip, as_folder, as_named_folder])
def test_cifar_fs_from_its_public_layout(tmp_path: Path, lay_out: object) -> None:
    lay_out(tmp_path)  # type: ignore[operator]
    dataset = open_dataset("cifar-fs", tmp_path)
    assert dataset.classes("train") == ("bee", "apple")
    images = dataset.images("train")
    assert images.shape == (2, 2, 3, 32, 32)  # as many a class as the smallest has, in order of file names
    assert images[:, :, 0, 0, 0].tolist() == [[40, 50], [10, 20]]
    assert open_dataset("cifar-fs", tmp_path).images("train") is images
    with pytest.raises(DatasetMissing, match=r"no images of 1 of the 1 test classes \(wolf"):
        dataset.images("test")
    with pytest.raises(ValueError, match="31x31"):
        dataset.images("val")


def test_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as caught:
        open_dataset("cifar-fs", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "cifar-fs.zip"), str(tmp_path / "cifar100"), "METAZOO_DATA", "Bertinetto"):
        assert part in message
    with pytest.raises(DatasetMissing, match="no folder of data sets was given"):
        open_dataset("cifar-fs", None)


def test_a_zip_without_the_layout_says_what_it_lacks(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cifar-fs.zip", "w") as archive:
        archive.writestr("other.txt", b"")
    with pytest.raises(DatasetMissing, match=r"splits/bertinetto/train\.txt"):
        open_dataset("cifar-fs", tmp_path).classes("train")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_is_named(name: str, tmp_path: Path) -> None:
    as_zip(tmp_path)
    with pytest.raises(ValueError, match="there are train, val, test"):
        open_dataset(name, tmp_path).classes("valid")


def test_an_unknown_data_set_is_named() -> None:
    with pytest.raises(ValueError, match="glyphs, cifar-fs"):
        open_dataset("imagenet", None)


@pytest.mark.data
def test_the_cifar_fs_at_hand(data_dir: Path) -> None:
    dataset = open_dataset("cifar-fs", data_dir)
    assert [len(dataset.classes(split)) for split in ("train", "val", "test")] == [64, 16, 20]
    images = dataset.images("val")
    assert images.shape == (16, 200, 3, 32, 32)
    assert 100 < images.float().mean() < 140
