import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation, Score
from dfml import io
from dfml.nets import Backbone, build

APIS = ["ab" * 32, "cd" * 32]


def make(name: str = "conv4") -> Backbone:
    config = BackboneConfig(backbone=name, width=16)
    return build(config, (3, 16, 16), generator=torch.Generator().manual_seed(3))


def write(folder: Path, backbone: Backbone, **changes: object) -> dict[str, str]:
    fields: dict[str, object] = {
        "name": "my model",
        "method": "pqd",
        "options": {"relation": 0.3},
        "apis": APIS,
        "queries": 20480,
        "seed": 7,
        "version": "0.1.0",
        "evaluation": Evaluation(dataset="glyphs"),
        "score": Score(accuracy={"1": 40.9, "5": 55.7}, interval={"1": 0.8, "5": 0.75}),
        "random_score": Score(accuracy={"1": 29.3, "5": 39.1}, interval={"1": 0.5, "5": 0.5}),
    }
    return io.save(folder, backbone, {"loss": 0.25}, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["conv4", "resnet10"])
def test_round_trip(tmp_path: Path, images: Tensor, name: str) -> None:
    backbone = make(name)
    write(tmp_path, backbone)
    loaded = io.load(tmp_path)
    assert loaded.config == backbone.config
    assert loaded.input_shape == backbone.input_shape
    assert not loaded.training
    assert torch.equal(loaded(images), backbone(images))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", make()), write(tmp_path / "two", make())
    assert one == two
    assert set(one) == {"config.json", "model.safetensors", "README.md", "metrics.json", "SHA256SUMS"}
    for name in one:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_written(tmp_path: Path) -> None:
    write(tmp_path, make())
    card = (tmp_path / "README.md").read_text()
    for part in ("my model", "20,480", "`pqd`", *APIS, "| 5 | 55.70 ± 0.75 | 39.10 ± 0.50 |", "seed: 7"):
        assert part in card
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["loss"] == 0.25
    assert metrics["score"]["accuracy"] == {"1": 40.9, "5": 55.7}
    assert json.loads((tmp_path / "config.json").read_text())["normalise"]["mean"] == [0.5, 0.5, 0.5]


def test_a_card_without_evaluation_says_so(tmp_path: Path) -> None:
    write(tmp_path, make(), evaluation=None, score=None, random_score=None)
    assert "Not evaluated." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "metrics.json"])
def test_an_altered_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, make())
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(io.BadModel, match=name):
        io.load(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(io.BadModel, match="SHA256SUMS is missing"):
        io.load(tmp_path)
    write(tmp_path, make())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(io.BadModel, match=r"model\.safetensors is missing"):
        io.load(tmp_path)


@pytest.mark.parametrize(
    "sums", ["nonsense\n", f"{'0' * 64}  ../config.json\n", f"{'0' * 64}  /etc/passwd\n", f"{'0' * 64}  \n"]
)
def test_sums_name_plain_files_of_the_folder(tmp_path: Path, sums: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(sums)
    with pytest.raises(io.BadModel, match="cannot be read"):
        io.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "cannot be read"),
        ('{"format": 1, "backbone": "vit", "width": 16, "input_shape": [3, 16, 16]}', "cannot be read"),
        ('{"format": 2, "backbone": "conv4", "width": 16, "input_shape": [3, 16, 16]}', "format 2"),
        ('{"format": 1, "backbone": "conv4", "width": 32, "input_shape": [3, 16, 16]}', "do not fit"),
    ],
)
def test_a_wrong_config_is_refused_although_its_sum_is_right(tmp_path: Path, config: str, message: str) -> None:
    sums = write(tmp_path, make())
    (tmp_path / "config.json").write_text(config)
    digest = io.hashlib.sha256(config.encode()).hexdigest()
    text = (tmp_path / "SHA256SUMS").read_text().replace(sums["config.json"], digest)
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(io.BadModel, match=message):
        io.load(tmp_path)


def test_sums_without_the_weights_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("")
    with pytest.raises(io.BadModel, match=r"does not list config\.json"):
        io.load(tmp_path)
