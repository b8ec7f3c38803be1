import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfml.datasets import NAMES, SPLITS, DatasetMissing, glyphs, names_under, open_dataset


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


def write(root: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def jpeg(value: int, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(out, "JPEG", quality=95)
    return out.getvalue()


def lay_out_others(root: Path) -> None:
    """Every data set but glyphs and CIFAR-FS in its public layout, as few and as small as that goes."""
    drawing = png(255, side=105)
    background = ["Greek/character01", "Greek/character02", "Hebrew/character01"]
    evaluation = ["Angelic/character01", "Gurmukhi/character41", "Gurmukhi/character42", "Tibetan/character01"]
    for folder, characters in (("images_background", background), ("images_evaluation", evaluation)):
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            for number, character in enumerate(characters):
                for drawer in (2, 1):
                    archive.writestr(f"{folder}/{character}/{number:04d}_{drawer:02d}.png", drawing)
    for part, alphabets in (("small1", ["Greek", "Early_Aramaic"]), ("small2", ["Greek", "Tagalog"])):
        write(root, {f"images_background_{part}/{name}/character01/1_01.png": drawing for name in alphabets})
    write(
        root, {f"CUB_200_2011/images/{k:03d}.Bird/b_{j}.jpg": jpeg(30 * k, (120, 90)) for k in range(8) for j in (1, 2)}
    )
    write(root, {"CUB_200_2011/images/003.Bird/b_3.jpg": jpeg(0, (10, 200))})  # one more, of no other class
    listed = {"train": ("n02", "n01"), "val": ("n03",), "test": ("n04",)}
    for split, names in listed.items():
        rows = [f"{name}{k:08d}.jpg,{name}" for name in names for k in (2, 1)]
        write(root, {f"mini-imagenet/{split}.csv": "\n".join(["filename,label", *rows])})
        write(root, {f"mini-imagenet/images/{row.split(',')[0]}": jpeg(50, (100, 84)) for row in rows})


def test_omniglot_from_its_public_layout_is_split_as_by_vinyals(tmp_path: Path) -> None:
    lay_out_others(tmp_path)
    dataset = open_dataset("omniglot", tmp_path)
    assert [dataset.classes(split) for split in SPLITS] == [
        ("Angelic/character01", "Greek/character01", "Greek/character02", "Gurmukhi/character41"),
        ("Hebrew/character01",),
        ("Gurmukhi/character42", "Tibetan/character01"),
    ]
    images = dataset.images("test")
    assert (images.shape, images.dtype) == ((2, 2, 3, 28, 28), torch.uint8)
    assert images.float().mean() == 255  # paper is white


def test_the_small_omniglot_sets_share_alphabets_and_test_nothing(tmp_path: Path) -> None:
    lay_out_others(tmp_path)
    dataset = open_dataset("omniglot-small", tmp_path)
    assert dataset.classes("train") == ("Greek/character01", "Tagalog/character01")
    assert dataset.classes("val") == ("Early_Aramaic/character01",)
    assert dataset.classes("test") == ()
    with pytest.raises(DatasetMissing, match="no test classes"):
        dataset.images("test")


def test_cub_is_split_as_by_chen_and_squeezed(tmp_path: Path) -> None:
    lay_out_others(tmp_path)
    dataset = open_dataset("cub", tmp_path)
    assert [[name[:3] for name in dataset.classes(split)] for split in SPLITS] == [
        ["000", "002", "004", "006"],
        ["001", "005"],
        ["003", "007"],
    ]
    images = dataset.images("test")
    assert images.shape == (2, 2, 3, 84, 84)
    means = images[:, :, 0].float().mean((1, 2, 3))
    assert torch.allclose(means, torch.tensor([90.0, 210.0]), atol=3)


def test_mini_imagenet_is_split_by_its_files(tmp_path: Path) -> None:
    lay_out_others(tmp_path)
    dataset = open_dataset("mini-imagenet", tmp_path)
    assert [dataset.classes(split) for split in SPLITS] == [("n02", "n01"), ("n03",), ("n04",)]
    assert dataset.images("train").shape == (2, 2, 3, 84, 84)
    (tmp_path / "mini-imagenet" / "images" / "n0400000001.jpg").unlink()
    (tmp_path / "mini-imagenet" / "images" / "n0400000002.jpg").unlink()
    moved = tmp_path.rename(tmp_path.with_name("moved"))  # data sets are opened once a process and place
    with pytest.raises(DatasetMissing, match=r"no images of 1 of the 1 test classes \(n04"):
        open_dataset("mini-imagenet", moved).images("test")


def test_a_csv_without_its_columns_is_named(tmp_path: Path) -> None:
    lay_out_others(tmp_path)
    write(tmp_path, {"mini-imagenet/val.csv": "a,b\n1,2"})
    with pytest.raises(ValueError, match=r"val\.csv: its first line"):
        open_dataset("mini-imagenet", tmp_path)


def test_image_folders_with_and_without_splits(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat", "dog", "eel")
    write(tmp_path, {f"plain/{name}/{k}.png": png(k) for name in names for k in range(3)} | {"plain/notes.txt": "none"})
    write(
        tmp_path, {f"apart/{split}/{name}/1.JPG": jpeg(0, (9, 9)) for split, name in zip(SPLITS, names, strict=False)}
    )
    write(tmp_path, {f"twice/{split}/ant/1.png": png(0) for split in SPLITS})
    write(tmp_path, {"flat/1.png": png(0), "one/only/1.png": png(0)})
    plain, apart = open_dataset("folder:plain", tmp_path), open_dataset("folder:apart", tmp_path)
    assert [plain.classes(split) for split in SPLITS] == [("ant", "cat", "eel"), ("bee",), ("dog",)]
    assert [apart.classes(split) for split in SPLITS] == [("ant",), ("bee",), ("cat",)]
    assert plain.images("train").shape == (3, 3, 3, 84, 84)
    assert plain.name == "folder:plain"
    assert names_under(tmp_path) == (*NAMES, "folder:apart", "folder:plain", "folder:twice")
    with pytest.raises(ValueError, match="ant is both in train and in val"):
        open_dataset("folder:twice", tmp_path)
    with pytest.raises(DatasetMissing, match=r"CLASS/IMAGE\.png"):
        open_dataset("folder:flat", tmp_path)


@pytest.mark.parametrize("name", ["../plain", "/etc", "..", ".", "a/b", "", "a\\b", "~"])
def test_image_folders_elsewhere_are_out_of_reach(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        open_dataset(f"folder:{name}", tmp_path)


def test_some_classes_are_those_of_the_whole(tmp_path: Path) -> None:
    lay_out_others(tmp_path)
    wanted = ["006.Bird", "002.Bird"]
    some = open_dataset("cub", tmp_path).images("train", wanted)
    dataset = open_dataset("cub", tmp_path.rename(tmp_path.with_name("afresh")))
    whole = dataset.images("train")
    assert torch.equal(some, whole[[3, 1]])
    assert torch.equal(dataset.images("train", wanted), some)


def test_any_data_set_comes_at_another_size(small_glyphs: None) -> None:
    own = open_dataset("glyphs", None)
    half = open_dataset("glyphs", None, side=16)
    assert half.name == "glyphs"
    assert half.classes("train") == own.classes("train")
    images = half.images("train", half.classes("train")[1:])
    assert (images.shape, images.dtype) == ((2, 100, 3, 16, 16), torch.uint8)
    pooled = torch.nn.functional.avg_pool2d(own.images("train")[1].float(), 2)
    assert (pooled - images[0].float()).abs().mean() < 8
    assert torch.equal(open_dataset("glyphs", None, side=32).images("val"), own.images("val"))
    with pytest.raises(ValueError, match="give 8 to 512"):
        open_dataset("glyphs", None, side=7)


@pytest.mark.parametrize(
    ("content", "told"), [(b"no picture", "no PNG"), (png(0)[:60], "damaged"), (bytes(50 * 2**20 + 1), "bytes: more")]
)
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    write(tmp_path, {"x/ant/1.png": content, "x/bee/1.png": png(0)})
    with pytest.raises(ValueError, match=rf"folder:x: ant/1\.png.*{told}"):
        open_dataset("folder:x", tmp_path).images("train")


def test_a_damaged_zip_is_told(tmp_path: Path) -> None:
    as_zip(tmp_path)
    whole = (tmp_path / "cifar-fs.zip").read_bytes()
    at = whole.index(b"PK\x01\x02")
    (tmp_path / "cifar-fs.zip").write_bytes(whole[:at] + b"XXXX" + whole[at + 4 :])
    with pytest.raises(ValueError, match="damaged"):
        open_dataset("cifar-fs", tmp_path)


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
    lay_out_others(tmp_path)
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


@pytest.mark.data
def test_the_small_omniglot_at_hand(data_dir: Path) -> None:
    dataset = open_dataset("omniglot-small", data_dir)
    assert [len(dataset.classes(split)) for split in SPLITS] == [220, 22, 0]
    images = dataset.images("val")
    assert images.shape == (22, 20, 3, 28, 28)
    assert 200 < images.float().mean() < 250
