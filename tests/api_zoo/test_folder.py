"""Zoo folders: whole ones open, all others are refused with a word on what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from api_zoo.folder import BadZoo, open_folder, read_manifest
from dfml.teachers import load_teacher


def change(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_entry(folder: Path, **fields: Any) -> None:
    first, *others = json.loads((folder / "manifest.json").read_text())["teachers"]
    change(folder, teachers=[{**first, **fields}, *others])


def test_models_are_named_after_data_set_and_file(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    models = open_folder(tmp_path)
    assert list(models) == ["toy-00", "toy-01"]
    assert models["toy-00"].labels == ["a", "b", "c"]
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    manifest = read_manifest(tmp_path)
    plain = load_teacher(manifest, manifest.teachers[0], tmp_path / "00.safetensors").predict(images)
    torch.testing.assert_close(models["toy-00"].predict(images), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir(), lambda folder: folder.touch()])
def test_a_folder_without_a_zoo_says_how_to_make_one(tmp_path: Path, make) -> None:
    make(tmp_path / "zoo")
    with pytest.raises(BadZoo, match=r"no manifest\.json: build a zoo with `metazoo zoo build"):
        open_folder(tmp_path / "zoo")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"zoo"', "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadZoo, match=r"manifest\.json is no"):
        open_folder(tmp_path)


def test_every_fault_of_a_manifest_is_named(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    change(tmp_path, width=0, backbone="vgg", teachers=[])
    with pytest.raises(BadZoo) as caught:
        open_folder(tmp_path)
    assert all(field in str(caught.value) for field in ("width", "backbone", "teachers"))


def test_a_changed_file_is_refused(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    path = tmp_path / "01.safetensors"
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)
    for unverified in (False, True):
        with pytest.raises(BadZoo, match=r"01\.safetensors was changed or damaged"):
            open_folder(tmp_path, unverified=unverified)


def test_a_missing_file_is_named(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    (tmp_path / "00.safetensors").unlink()
    with pytest.raises(BadZoo, match=r"00\.safetensors is missing"):
        open_folder(tmp_path)


def test_files_without_hashes_need_trust(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path, teachers=5, hashes=False)
    with pytest.raises(BadZoo, match=r"no sha256 for 00.*and 2 more.*--unverified"):
        open_folder(tmp_path)
    assert len(open_folder(tmp_path, unverified=True)) == 5


@pytest.mark.parametrize(
    "file",
    [
        "../00.safetensors",
        "/etc/passwd",
        "sub/00.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        "00.pt",
        "00.safetensors/",
    ],
)
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, write_zoo, file: str) -> None:
    write_zoo(tmp_path / "zoo")
    shutil.copy(tmp_path / "zoo" / "00.safetensors", tmp_path)
    change_entry(tmp_path / "zoo", file=file)
    with pytest.raises(BadZoo, match=r"must be the name of a \.safetensors file"):
        open_folder(tmp_path / "zoo")


def test_links_out_of_the_folder_are_refused(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path / "zoo")
    moved = (tmp_path / "zoo" / "00.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (tmp_path / "zoo" / "00.safetensors").symlink_to(moved)
    with pytest.raises(BadZoo, match="points out of the folder"):
        open_folder(tmp_path / "zoo")


@pytest.mark.parametrize(
    "changed", [{"width": 8}, {"conv_bias": True}, {"input": [3, 32, 32]}, {"input": [3, 8, 8]}, {"dataset": "../x"}]
)
def test_weights_that_do_not_fit_the_manifest_are_refused(tmp_path: Path, write_zoo, changed: dict[str, Any]) -> None:
    write_zoo(tmp_path, **changed)
    with pytest.raises(BadZoo, match=r"00\.safetensors cannot be hosted"):
        open_folder(tmp_path)


def test_two_teachers_of_one_name_are_refused(tmp_path: Path, write_zoo) -> None:
    entry = write_zoo(tmp_path)["teachers"][0]
    change(tmp_path, teachers=[entry, entry])
    with pytest.raises(BadZoo, match="names toy-00 twice"):
        open_folder(tmp_path)


@pytest.mark.data
def test_the_public_zoo_opens(data_dir: Path) -> None:
    models = open_folder(data_dir / "teachers" / "cifar-fs-conv4")
    assert list(models) == [f"cifar-fs-{number:02d}" for number in range(40)]
    assert models["cifar-fs-01"].labels == ["oak_tree", "bear", "chair", "girl", "bottle"]


def test_policies_come_from_the_manifest_or_from_whoever_serves(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    change_entry(tmp_path, response_policy="topk:2", eight_bit_only=True)
    first, second = open_folder(tmp_path).values()
    assert (first.policy, first.datatypes) == ("topk:2", ("UINT8",))
    assert (second.policy, second.datatypes) == ("probabilities", ("UINT8", "FP32"))
    assert {model.policy for model in open_folder(tmp_path, policy="label").values()} == {"label"}
    for policy in ("logits", "topk:4"):
        with pytest.raises(BadZoo, match=policy):
            open_folder(tmp_path, policy=policy)


def test_a_manifest_with_a_policy_that_is_none_is_refused(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path)
    change_entry(tmp_path, response_policy="logits")
    with pytest.raises(BadZoo, match="response_policy"):
        open_folder(tmp_path)
