"""Importing teachers: what answers rightly is hosted as it is, all else leaves the folder as it was."""

import json
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from typer.testing import CliRunner

from api_zoo.folder import BadZoo, open_folder, read_manifest
from api_zoo.importing import import_teacher, scaled
from api_zoo.weights import Shelf
from contracts.zoo import Normalisation
from dfml.nets import build_classifier, weights
from metazoo.commands import zoo

PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SHAPE = (3, 16, 16)


def known(backbone: str, **more: Any):
    generator = torch.Generator().manual_seed(1)
    return build_classifier(8, SHAPE, 3, normalisation=PLAIN, backbone=backbone, generator=generator, **more)


def give(source: Path, folder: Path, **more: Any):
    options = {"name": source.stem, "classes": ["a", "b", "c"], "input_shape": SHAPE, "normalise": PLAIN, **more}
    return import_teacher(source, folder, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save(weights(known("conv4"))))
    return path


@pytest.mark.parametrize(
    ("backbone", "bias"), [("conv4", False), ("conv4", True), ("resnet10", False), ("resnet18", False)]
)
def test_weights_of_a_known_network_are_recognised_and_hosted(tmp_path: Path, backbone: str, bias: bool) -> None:
    module = known(backbone, conv_bias=bias)
    (tmp_path / "x.safetensors").write_bytes(save(weights(module)))
    give(tmp_path / "x.safetensors", tmp_path / "zoo", dataset="cats")
    (model,) = open_folder(tmp_path / "zoo").values()
    images = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)
    torch.testing.assert_close(model.predict(images), module(images).softmax(-1), atol=1e-5, rtol=1e-4)
    assert (model.name, model.labels) == ("cats-x", ["a", "b", "c"])


def test_an_onnx_file_and_an_archive_join_a_built_zoo(tmp_path: Path, write_zoo) -> None:
    write_zoo(tmp_path / "zoo")
    weight = np.eye(3, dtype=np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=1),
    ]
    ends = (("x", ["n", 3, 20, 20]), ("y", ["n", 3]))
    (one, two) = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends)
    graph = helper.make_graph(nodes, "g", [one], [two], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    # images of 0 to 255 are what this one was trained on
    options = {"input_shape": (3, 20, 20), "answers": "probabilities", "origin": "https://models.test/m"}
    give(tmp_path / "m.onnx", tmp_path / "zoo", normalise=scaled((0, 255), (0, 0, 0), (1, 1, 1)), **options)

    module = known("conv4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim("n")},)
        torch.export.save(
            torch.export.export(module, (torch.rand(2, *SHAPE),), dynamic_shapes=dynamic), tmp_path / "e.pt2"
        )
    give(tmp_path / "e.pt2", tmp_path / "zoo")

    models = open_folder(tmp_path / "zoo", shelf=(shelf := Shelf(10**9)))
    assert list(models) == ["toy-00", "toy-01", "imported-m", "imported-e"]
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    expected = images.float().mean((2, 3)).softmax(-1)
    torch.testing.assert_close(models["imported-m"].predict(images), expected, atol=1e-5, rtol=1e-3)
    assert shelf.bytes >= (tmp_path / "m.onnx").stat().st_size  # which no parameter of torch's tells
    images = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    torch.testing.assert_close(models["imported-e"].predict(images), module(images).softmax(-1), atol=1e-5, rtol=1e-4)
    entry = read_manifest(tmp_path / "zoo").teachers[2]
    assert entry.origin == "https://models.test/m"
    assert entry.sha256 == sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize("change", [lambda held: held[:-1], lambda held: held[:-1] + bytes([held[-1] ^ 1])])
def test_a_tampered_or_truncated_file_is_refused_by_its_hash(source: Path, tmp_path: Path, change) -> None:
    digest = sha256(source.read_bytes()).hexdigest()
    give(source, tmp_path / "zoo", digest=digest)
    hosted = tmp_path / "zoo" / "mine.safetensors"
    hosted.write_bytes(change(hosted.read_bytes()))
    with pytest.raises(BadZoo, match="changed or damaged"):
        open_folder(tmp_path / "zoo")
    source.write_bytes(change(source.read_bytes()))
    with pytest.raises(BadZoo, match="changed or damaged"):
        give(source, tmp_path / "other", digest=digest)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"classes": ["a", "b"]}, "head"),
        ({"classes": ["a", "a", "b"]}, "each once"),
        ({"classes": ["a"]}, "two or more"),
        ({"input_shape": (3, 32, 32)}, "head"),
        ({"input_shape": (3, 8, 8)}, "too small"),
        ({"name": "../out"}, "is no name"),
        ({"digest": "0" * 64}, "SHA-256 is"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadZoo, match=told):
        give(source, tmp_path / "zoo", **options)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.pth", b"", "may hold a pickle"),
        ("m.bin", b"", "may hold a pickle"),
        ("m.txt", b"", r"one of \.safetensors"),
        ("m.safetensors", b"nonsense", "m.safetensors:"),
        ("m.safetensors", save({"fc.weight": torch.zeros(2)}), "but fc.weight"),
        ("m.safetensors", save({**weights(known("conv4")), "head.bias": torch.full((3,), torch.nan)}), "NaN"),
        ("m.pt2", b"nonsense", "damaged"),
        ("m.onnx", b"nonsense", "ONNX Runtime"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadZoo, match=told):
        give(tmp_path / name, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_nothing_in_a_folder_is_overwritten(source: Path, tmp_path: Path) -> None:
    give(source, tmp_path / "zoo")
    with pytest.raises(BadZoo, match="already: give another --name"):
        give(source, tmp_path / "zoo")
    give(source, tmp_path / "zoo", name="second")
    assert len(open_folder(tmp_path / "zoo")) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "build.json").touch()
    with pytest.raises(BadZoo, match="finish its build first"):
        give(source, tmp_path / "full")


def test_a_range_of_values_becomes_part_of_the_normalisation() -> None:
    found = scaled((-1, 1), (0.5, 0, 0), (1, 2, 1))
    pixel = 0.75  # 0.5 on the scale from -1 to 1
    assert [(pixel - mean) / std for mean, std in zip(found.mean, found.std, strict=True)] == [0.0, 0.25, 0.5]
    for values, std in (((1, 1), (1, 1, 1)), ((0, 1), (1, 0, 1))):
        with pytest.raises(BadZoo, match="must rise"):
            scaled(values, (0, 0, 0), std)


def test_the_command_says_what_it_made_or_why_not(source: Path, tmp_path: Path) -> None:
    arguments = ["import", str(source), "--out", str(tmp_path / "zoo"), "--classes", "cat, dog,eel", "--size", "16"]
    done = CliRunner().invoke(zoo.app, [*arguments, "--range", "-1", "1", "--accuracy", "0.5"])
    assert done.exit_code == 0, done.output
    assert "imported-mine is in" in done.stdout
    held = json.loads((tmp_path / "zoo" / "manifest.json").read_text())["teachers"][0]
    assert held["classes"] == ["cat", "dog", "eel"]
    assert held["network"]["normalise"]["std"] == [0.5, 0.5, 0.5]
    again = CliRunner().invoke(zoo.app, arguments)
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
